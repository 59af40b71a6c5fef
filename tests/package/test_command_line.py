"""``python -m optax_decoupled``: output of 80 columns, exit codes, errors without a traceback."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import optax_decoupled as od
from optax_decoupled.__main__ import main


def trained():
    tx = optax.chain(od.adamw(1e-3, 1e-4), od.record_weight_dynamics(capacity=32))
    params = {"dense": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
    state = tx.init(params)
    for i in range(12):
        grads = jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One directory saved at once, and one of a manager with an older, empty step."""
    path = tmp_path_factory.mktemp("checkpoints")
    params, state = trained()
    tree = {"step": 12, "params": params, "opt_state": state}
    with ocp.StandardCheckpointer() as saver:
        saver.save(path / "single", tree)
    with ocp.CheckpointManager(path / "manager") as manager:
        manager.save(3, args=ocp.args.StandardSave({"params": params}))
        manager.save(12, args=ocp.args.StandardSave(tree))
    with ocp.StandardCheckpointer() as saver:  # as Flax names them
        saver.save(path / "prefixed" / "checkpoint_2", {"params": params})
        saver.save(path / "prefixed" / "checkpoint_10", tree)
    return path, od.recorded_weight_dynamics(state, weight_decay=1e-4)


def run(capsys, *arguments):
    code = main(arguments)
    out, err = capsys.readouterr()
    assert max(map(len, (out + err).splitlines()), default=0) <= 80 or code
    return code, out, err


def test_plan_prints_the_plan(capsys):
    line = "plan 100000 --learning-rate 3e-4 --pytorch 0.1 --warmup 2000 --cosine"
    code, out, err = run(capsys, *line.split())
    eta = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, 2000), optax.cosine_decay_schedule(1.0, 98_000)], [2000]
    )
    plan = od.plan_weight_decay(100_000, weight_decay=3e-5, learning_rate=3e-4, schedule=eta)
    assert (code, out, err) == (0, f"{plan}\n", "")
    assert "budget 4" in out
    assert run(capsys, "plan", "100000", "--weight-decay", "3e-5")[1] != out
    assert run(capsys, *line.replace("100000", "1e5").split())[1] == out


def test_the_decay_of_pytorchs_sgd_is_that_of_its_row(capsys):
    """L2 of coefficient v with momentum m removes v·α/(1 - m) of a weight per step."""
    line = "plan 1000 --learning-rate 0.1 --momentum 0.9 --pytorch 5e-4"
    code, out, _ = run(capsys, *line.split())
    yours = next(row.split() for row in out.splitlines() if row.startswith("yours"))
    assert (code, yours[1:3]) == (0, ["5.00e-04", "0.0005"])
    code, _, err = run(capsys, *line.replace("0.9", "1.0").split())
    assert (code, "momentum=1.0" in err) == (1, True)


@pytest.mark.parametrize("name", ["single", "manager", "manager/12", "prefixed"])
def test_history_prints_what_a_checkpoint_holds(capsys, checkpoints, name):
    path, history = checkpoints
    code, out, _ = run(capsys, "history", str(path / name), "--weight-decay", "1e-4")
    assert (code, out) == (0, f"{history}\n")


def test_history_spares_what_decay_mask_spares_and_draws(capsys, checkpoints, tmp_path):
    path, _ = checkpoints
    line = ["history", str(path / "single"), "--weight-decay", "1e-4", "--learning-rate", "1e-3"]
    plot = tmp_path / "history.png"
    code, out, _ = run(capsys, *line, "--decay-mask", "--plot", str(plot))
    assert code == 0
    assert plot.read_bytes()[:4] == b"\x89PNG"
    bias = next(row for row in out.splitlines() if row.startswith("dense/bias"))
    everything = run(capsys, *line)[1]
    assert bias not in everything


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("history nowhere --cosine", "--cosine needs --steps"),
        ("plan 100 --pytorch 0.1", "--pytorch needs --learning-rate"),
        ("plan 100 --warmup 200", "--warmup 200 must be between 0 and the run's 100"),
        ("plan -5", "steps=-5 is not allowed"),
        ("plan 0", "steps=0 is not allowed"),
        ("history nowhere", "nowhere is not a directory"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(capsys, line, message):
    code, out, err = run(capsys, *line.split())
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err


def test_a_checkpoint_without_a_history_says_what_to_add(capsys, checkpoints, tmp_path):
    path, _ = checkpoints
    code, _, err = run(capsys, "history", str(path / "manager" / "3"))
    assert code == 1
    assert "record_weight_dynamics" in err
    assert "no Orbax checkpoint" in run(capsys, "history", str(tmp_path))[2]


def test_a_directory_of_several_runs_is_refused(capsys, checkpoints, tmp_path):
    path, history = checkpoints
    for run_name in ("first", "second"):
        shutil.copytree(path / "prefixed", tmp_path / run_name)
    code, _, err = run(capsys, "history", str(tmp_path))
    assert code == 1
    assert "several runs: first, second. Pass one." in " ".join(err.split())
    shutil.rmtree(tmp_path / "first")
    line = ["history", str(tmp_path), "--weight-decay", "1e-4"]
    assert run(capsys, *line)[:2] == (0, f"{history}\n")
    shutil.copytree(path / "manager", tmp_path / "third")
    assert "several runs: second, third." in " ".join(run(capsys, *line)[2].split())


def test_steps_whose_items_end_in_a_number_are_one_run(capsys, checkpoints, tmp_path):
    _, state = trained()
    with ocp.CheckpointManager(tmp_path) as manager:
        for step in (1, 2):
            items = {name: ocp.args.StandardSave({"opt_state": state}) for name in ("opt", "ema2")}
            manager.save(step, args=ocp.args.Composite(**items))
    line = ["history", str(tmp_path), "--weight-decay", "1e-4"]
    assert run(capsys, *line)[:2] == (0, f"{checkpoints[1]}\n")


def test_usage_errors_exit_with_2_and_help_has_an_example(capsys):
    for arguments in ([], ["plans"], ["plan", "100", "--pytorch", "1", "--weight-decay", "1"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
    capsys.readouterr()
    for command in ("plan", "history"):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        assert f"python -m optax_decoupled {command} " in capsys.readouterr().out


def test_the_module_runs():
    command = [sys.executable, "-m", "optax_decoupled", "plan", "1000", "--warmup", "-1"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "--warmup -1" in process.stderr


def test_the_schedule_of_an_early_checkpoint_is_that_of_the_whole_run(capsys, checkpoints):
    path, _ = checkpoints
    line = ["history", str(path / "single"), "--weight-decay", "1e-4", "--warmup", "50"]
    code, out, _ = run(capsys, *line)
    assert code == 0
    other = run(capsys, *line, "--cosine", "--steps", "60")[1]
    assert other.splitlines()[0] == out.splitlines()[0]
    state = trained()[1]
    eta = optax.linear_schedule(0.0, 1.0, 50)
    expected = od.recorded_weight_dynamics(state, weight_decay=1e-4, schedule=eta)
    assert out == f"{expected}\n"

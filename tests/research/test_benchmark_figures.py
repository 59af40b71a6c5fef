"""Every figure's script runs, small, and its results read as Markdown."""

import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from scripts import run_quickly

from benchmarks.figures import figure2_cifar10, figure2_digits
from benchmarks.lib import data
from benchmarks.lib.sizes import run_from_arguments

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Noise in CIFAR-10's layout."""
    directory = tmp_path_factory.mktemp("cifar")
    folder = directory / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    shape = (data.CIFAR10_RECORDS, data.CIFAR10_RECORD_BYTES)
    records = rng.integers(0, 256, shape, np.uint8)
    for name in (*data.CIFAR10_TRAIN, data.CIFAR10_TEST):
        records[:, 0] = rng.permutation(len(records)) % 10
        (folder / name).write_bytes(records.tobytes())
    return directory


def _run(script, *arguments):
    command = [sys.executable, "-m", f"benchmarks.figures.{script}", "--quick"]
    arguments = map(str, arguments)
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_digits(tmp_path):
    scripts = ("figure1", "figure2_digits", "figure3", "figure4", "normalized_decay")
    modules = [f"benchmarks.figures.{script}" for script in scripts]
    done = run_quickly(modules, tmp_path)
    for script in scripts:
        _check(done, script, tmp_path)


@pytest.mark.slow
def test_cifar10_and_going_on_after_a_kill(cifar, tmp_path):
    arguments = ("figure2_cifar10", "--out", tmp_path, "--data", cifar)
    _check(_run(*arguments), "figure2_cifar10", tmp_path)
    path = tmp_path / "figure2_cifar10_quick.json"
    before = json.loads(path.read_text())
    kept = sorted(tmp_path.glob("cells/**/cell-*"))
    assert len(kept) == 4 * 9 * 2
    kept[0].unlink()
    _check(_run(*arguments), "figure2_cifar10", tmp_path)
    assert json.loads(path.read_text())["networks"] == before["networks"]


def test_missing_data_are_named(tmp_path, monkeypatch, capsys):
    arguments = ["", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="2"):
        figure2_cifar10.main()
    assert "--data" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*arguments, "--data", str(tmp_path)])
    with pytest.raises(ValueError, match=r"data_batch_1\.bin"):
        figure2_cifar10.main()


def _check(done, script, out):
    assert done.returncode == 0, done.stderr
    assert (out / f"{script}_quick.png").stat().st_size > 10_000
    record = json.loads((out / f"{script}_quick.json").read_text())
    figure = importlib.import_module(f"benchmarks.figures.{script}")
    assert all(sentence in figure.report(record) for sentence in figure.conclusion(record))


def test_the_main_job_trains_every_second_rate_and_decay_of_one_network(tmp_path, monkeypatch):
    """As the Makefile has it."""
    makefile = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"-m benchmarks.figures.figure2_digits (.*) --out", makefile)
    monkeypatch.setattr(sys, "argv", ["", *shlex.split(command), "--out", str(tmp_path)])
    run = run_from_arguments("x", "", "digits", sizes=False, parts=tuple(figure2_digits.NETWORKS))
    jobs = figure2_digits.jobs(run)
    assert {network for network, _ in jobs} == {"batch norm"}
    for job in jobs.values():
        assert (len(job.learning_rates), len(job.weight_decays), job.seeds) == (5, 7, 16)
        assert job.learning_rates[1] == 4 * job.learning_rates[0]
    assert sum(job.cells for job in jobs.values()) <= 2500  # 0.05 core-seconds each

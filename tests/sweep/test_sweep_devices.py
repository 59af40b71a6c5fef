"""Many devices, many processes or little memory give the numbers of one device."""

import dataclasses
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from sweep_cases import ROOT, TASK, assert_same, environment, files, run

from optax_decoupled import sweep


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("vectorize", [None, 16])
def test_cells_on_eight_devices_give_the_numbers_of_one(axis_type, vectorize):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    sharded = run(mesh=mesh, vectorize=vectorize, weight_decays=np.geomspace(1e-4, 1e-2, 7))
    single = run(weight_decays=np.geomspace(1e-4, 1e-2, 7))
    np.testing.assert_array_equal(sharded.diverged, single.diverged)
    np.testing.assert_allclose(sharded.metrics["error"], single.metrics["error"], rtol=1e-6)
    if vectorize is None:  # one cell per device: the same program
        assert_same(sharded, single)


def test_fewer_cells_at_a_time_where_memory_is_short(monkeypatch):
    widths = []

    @jax.custom_batching.custom_vmap
    def scarce(error):
        return error

    @scarce.def_vmap
    def _(width, batched, error):
        widths.append(width)
        if width > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return error, batched[0]

    task = dataclasses.replace(
        TASK, evaluate=lambda *both: {"error": scarce(TASK.evaluate(*both)["error"])}
    )
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "tpu")
        result = run(task)
    assert list(dict.fromkeys(widths)) == [6, 3]  # and at last one, without vmap
    assert_same(result, run())
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        run(task, vectorize=3)  # an explicit width is not changed


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    script = str(ROOT / "examples" / "landscape_cluster.py")
    variables = environment(JAX_NUM_CPU_DEVICES="2", JAX_PLATFORMS="cpu")

    def launch(directory, saved):
        coordinator = ["--coordinator", f"localhost:{_free_port()}", "--processes", "2"]
        command = [sys.executable, script, *coordinator]
        outputs = ["--directory", str(directory), "--save", str(saved)]
        processes = [
            subprocess.Popen(
                [*command, "--process", str(n), *outputs],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for n in range(2)
        ]
        return [(p.communicate(timeout=300)[0], p.returncode) for p in processes]

    alone = tmp_path / "alone.npz"
    single = environment(JAX_NUM_CPU_DEVICES="1", JAX_PLATFORMS="cpu")
    subprocess.run([sys.executable, script, "--save", str(alone)], check=True, env=single)
    done = launch(tmp_path / "cells", tmp_path / "two.npz")
    assert [code for _, code in done] == [0, 0], done
    assert "4 devices of 2 processes" in done[0][0]
    assert_same(sweep.Landscape.load(tmp_path / "two.npz"), sweep.Landscape.load(alone))
    kept = files(tmp_path / "cells")
    assert len(kept) == 165
    for name in list(kept)[::3]:  # as if it had been killed
        (tmp_path / "cells" / name).unlink()
    done = launch(tmp_path / "cells", tmp_path / "again.npz")
    assert [code for _, code in done] == [0, 0], done
    assert_same(sweep.Landscape.load(tmp_path / "again.npz"), sweep.Landscape.load(alone))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").write_text("")
    done = launch(tmp_path / "foreign", tmp_path / "none.npz")
    assert all(code != 0 and "holds no sweep" in output for output, code in done), done

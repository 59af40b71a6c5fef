"""A directory that cannot keep a sweep is refused, and nothing in it is changed."""

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys

import pytest
from sweep_cases import ROOT, assert_same, environment, files, run

from optax_decoupled.sweep.files import replacement


@pytest.mark.parametrize("name", ["optax_decoupled", "jax", "jaxlib", "optax", "numpy"])
def test_other_versions_are_refused(tmp_path, untrained, name):
    run(directory=tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["versions"][name] == sys.modules[name].__version__
    manifest["versions"][name] = "0.0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="it differs in versions"):
        run(directory=tmp_path)
    with pytest.raises(ValueError, match="it differs in task, versions"):
        run(untrained, directory=tmp_path)


def test_a_directory_of_other_files_is_refused(untrained, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        run(untrained, directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _set_free_space(monkeypatch, size):
    usage = shutil.disk_usage(".")._replace(free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_disk_with_space_for_the_missing_cells_is_accepted(tmp_path, monkeypatch):
    _set_free_space(monkeypatch, 13 * 4096)  # a block for each of 12 cells and the manifest
    run(directory=tmp_path)
    _set_free_space(monkeypatch, 4096)  # all cells are there
    run(directory=tmp_path)


def test_a_full_disk_is_refused(untrained, tmp_path, monkeypatch):
    _set_free_space(monkeypatch, 13 * 4096 - 1)
    with pytest.raises(OSError, match=r"No space left on device\. Nothing was trained") as caught:
        run(untrained, directory=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_an_unwritable_directory_is_refused(untrained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the sweep: .*below: Not a directory\. Nothing was"):
        run(untrained, directory=tmp_path / "file" / "below")
    with largest_file(0), pytest.raises(OSError, match=r"File too large\. Nothing was trained"):
        run(untrained, directory=tmp_path / "new")
    assert_same(run(directory=tmp_path / "new"), run())


@contextlib.contextmanager
def largest_file(size):
    """The system refuses to write larger files, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("vectorize", [None, 4])
def test_a_disk_that_fills_up_loses_no_kept_cell(tmp_path, vectorize):
    with contextlib.ExitStack() as stack:

        def fill(done, total):
            if done >= 4:
                stack.enter_context(largest_file(100))

        with pytest.raises(OSError, match=r"cannot keep the sweep: .*go on\.$") as caught:
            run(directory=tmp_path, progress=fill, vectorize=vectorize)
    assert caught.value.errno == errno.EFBIG
    kept = files(tmp_path)
    assert len(kept) == 4
    message = "File too large. 4 of 12 cells are kept. Once the cause is removed, run the same"
    assert message in str(caught.value)
    assert not list(tmp_path.glob("*.partial"))
    assert_same(run(directory=tmp_path, vectorize=vectorize), run(vectorize=vectorize))
    assert kept.items() <= files(tmp_path).items()


@pytest.mark.parametrize("name", [".manifest.json.partial", ".cell-0000-0000-0000.json.partial"])
def test_no_link_of_a_partial_file_is_followed(tmp_path, name):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).symlink_to(tmp_path / "precious")
    assert_same(run(directory=tmp_path / "sweep"), run())
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "sweep" / name).is_symlink()


def test_writers_of_one_file_share_no_partial_file(tmp_path):
    path = tmp_path / "file"
    with replacement(path) as first, replacement(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # it is closed last
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_place_of_a_new_file_is_neither_followed_nor_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda size: "00" * size)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".file.00000000.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError), replacement(tmp_path / "file") as file:
        file.write(b"")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / ".file.00000000.partial").is_symlink()


def test_partial_files_of_killed_processes_are_deleted_and_no_others(tmp_path):
    run(directory=tmp_path)
    left = [".manifest.json.0123abcd.partial", ".cell-0000-0000-0000.json.89efab67.partial"]
    other = ["thesis.partial", ".thesis.json.backup.partial"]
    for name in left + other:
        (tmp_path / name).write_text("")
    (tmp_path / ".directory.json.partial").mkdir()
    run(directory=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names & {*left, *other} == {*other}
    assert ".directory.json.partial" in names


@pytest.mark.parametrize("name", ["thesis.partial", ".directory.json.partial/thesis"])
def test_other_partial_files_are_other_files(untrained, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        run(untrained, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "pipe"])
@pytest.mark.parametrize("name", ["manifest.json", "cell-0001-0001-0001.json", ".lock"])
def test_no_link_directory_or_pipe_is_read(tmp_path, kind, name):
    directory, path = tmp_path / "sweep", tmp_path / "sweep" / name
    run(directory=directory)
    path.rename(tmp_path / "moved")
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("moved" if kind == "link" else "nothing"))
    message = f"{re.escape(str(path))} is a link, a directory or a pipe; .*Delete it, or choose"
    with pytest.raises(ValueError, match=message):
        run(directory=directory)
    assert not (tmp_path / "nothing").exists()


def test_the_directory_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(directory=tmp_path / "link")
    assert len(files(tmp_path / "real")) == 12


@pytest.mark.parametrize("vectorize", [None, 4])
def test_a_directory_in_use_is_refused(untrained, tmp_path, vectorize):
    seen = []

    def progress(done, total):
        with pytest.raises(ValueError, match=r"is in use by another sweep\. .*Wait") as caught:
            run(directory=tmp_path)
        seen.append(caught.value)

    result = run(directory=tmp_path, progress=progress, vectorize=vectorize)
    assert seen
    assert_same(run(directory=tmp_path, vectorize=vectorize), result)  # no longer in use


# A sweep in the directory argv[1], which is killed after argv[2] cells.
_OTHER = """
import os, signal, sys
from sweep_cases import run
kill = lambda done, total: done == int(sys.argv[2]) and os.kill(os.getpid(), signal.SIGKILL)
run(directory=sys.argv[1], progress=kill)
"""


def _run_elsewhere(directory, cells):
    command = [sys.executable, "-c", _OTHER, str(directory), str(cells)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweep")])
    variables = environment(PYTHONPATH=path)
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)


def test_a_directory_in_use_by_another_process_is_refused(tmp_path):
    others = []

    def progress(done, total):
        if not others:
            others.append(_run_elsewhere(tmp_path, 99))

    run(directory=tmp_path, progress=progress)
    assert others[0].returncode == 1
    assert "is in use by another sweep. Nothing was trained." in others[0].stderr.splitlines()[-1]


def test_a_killed_process_blocks_no_directory(tmp_path):
    assert _run_elsewhere(tmp_path, 3).returncode == -signal.SIGKILL
    kept = files(tmp_path)
    assert len(kept) >= 3
    assert_same(run(directory=tmp_path), run())
    assert kept.items() <= files(tmp_path).items()


def test_a_failed_sweep_blocks_no_directory(tmp_path):
    def fail(done, total):
        raise KeyError

    with pytest.raises(KeyError) as caught:
        run(directory=tmp_path, progress=fail)
    assert_same(run(directory=tmp_path), run())
    assert caught.tb is not None  # its traceback still refers to the first sweep


def test_a_directory_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.warns(UserWarning, match=r"\.lock cannot be locked .*one process at a time") as got:
        result = run(directory=tmp_path)
    assert got[0].filename.endswith("sweep_cases.py")  # the line that calls the package
    assert_same(result, run())


def test_a_file_system_without_locks_warns_too(tmp_path, monkeypatch):
    def refuse(file, flags):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="No locks available"):
        run(directory=tmp_path)


@pytest.mark.slow
def test_a_disk_that_is_really_full_is_refused(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        (tmp_path / "ballast").write_bytes(bytes(60_000))
        with pytest.raises(OSError, match=r"No space left on device\. Nothing was trained"):
            run(directory=tmp_path / "sweep")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

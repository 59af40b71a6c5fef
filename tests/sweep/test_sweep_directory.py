"""A directory that cannot keep a sweep is refused before anything is trained, and left alone."""

import errno
import json
import os
import shutil
import subprocess

import pytest
from sweep_cases import assert_same, files, run


def test_other_versions_are_refused(tmp_path, untrained):
    run(directory=tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["optax"] = "0.0"
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


def test_a_full_disk_is_refused(untrained, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"No space left on device\. Nothing was trained") as caught:
        run(untrained, directory=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_an_unwritable_directory_is_refused(untrained, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot keep the sweep: .*Nothing was trained"):
        run(untrained, directory=tmp_path / "file" / "below")

    def refuse(*arguments, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied\. Nothing was trained"):
        run(untrained, directory=tmp_path / "new")


def test_a_disk_that_fills_up_loses_no_kept_cell(tmp_path, monkeypatch):
    replace, moved = os.replace, []

    def fail(source, target):
        moved.append(target)
        if len(moved) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            run(directory=tmp_path)
    kept = files(tmp_path)
    assert len(kept) == 5  # and the manifest
    assert_same(run(directory=tmp_path), run())
    assert kept.items() <= files(tmp_path).items()


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

"""Files that are replaced as a whole, and lock files."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from optax_decoupled._common import checks

# As `replacement` names its files; earlier releases left out the random part.
_PARTIAL = re.compile(r"\..+\.json(\.[0-9a-f]{8})?\.partial")

# Lock files in use by this process, which `fcntl.lockf` locks against other processes only.
_HELD: dict[str, object] = {}


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[IO[bytes]]:
    """Yields a new file that replaces `path` at the end; after an error `path` is as before.

    The file is created exclusively under a unique name: no other process writes to it, and it
    is not a link.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    # Outside of `try`: if this fails, the file of that name is not ours to delete.
    file = open(temporary, "xb")  # noqa: SIM115
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_partial(entry: os.DirEntry[str]) -> bool:
    """Whether it may be the file of a replacement that was killed."""
    named = _PARTIAL.fullmatch(entry.name) is not None
    return named and not entry.is_dir(follow_symlinks=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file until the end; the system releases it if the process is killed.

    Raises:
      BlockingIOError: if another process or thread holds it.
    """
    key, holder = os.path.realpath(path), object()
    if _HELD.setdefault(key, holder) is not holder:
        raise BlockingIOError
    try:
        with open(path, "ab+", buffering=0) as file:
            _lock(file, path)
            yield
    finally:
        del _HELD[key]


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl  # missing on Windows

        # Unlike `flock`, not inherited by forked processes, which may outlive this one.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them depends on the system
        raise BlockingIOError from None
    except (ImportError, OSError) as error:
        checks.warn(f"{path} cannot be locked ({error}). Let one process at a time sweep there.")

"""The weight history in an Orbax checkpoint, without the code that trained the model."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from optax_decoupled._watch import stored

_NUMBER = re.compile(r"(\d+)$")  # the step, at the end of a directory's name


def read(checkpoint: str) -> Any:
    """A tree with the histories of a checkpoint; nothing else is read from it.

    `checkpoint` is a directory that Orbax saved, or one of a CheckpointManager, of which the
    latest step is read.
    """
    path = Path(checkpoint).absolute()
    if not path.is_dir():
        raise ValueError(f"{checkpoint} is not a directory. Pass one that Orbax saved.")
    _refuse_several_runs(checkpoint, path)
    items = sorted(_items(path), key=_step, reverse=True)
    if not items:
        raise ValueError(
            f"{checkpoint} holds no Orbax checkpoint of a tree: it has no file _METADATA."
        )
    orbax = _orbax()
    for item in (each for each in items if _step(each) == _step(items[0])):
        tree = orbax.PyTreeCheckpointer().metadata(item).item_metadata.tree
        if stored.history_nodes(tree):
            return _restored(orbax, item, tree)
    raise ValueError(
        f"{items[0]} holds no weight history. Train with optax.chain(optimizer, "
        "od.record_weight_dynamics()), and save the optimizer's state."
    )


def _refuse_several_runs(checkpoint: str, path: Path) -> None:
    """Raises if steps lie in several directories: the latest one may be of another run."""
    runs = {step.parent for step in _with_file(path, "_CHECKPOINT_METADATA")}
    if len(runs) > 1:
        names = ", ".join(sorted(str(run.relative_to(path)) for run in runs))
        raise ValueError(f"{checkpoint} holds checkpoints of several runs: {names}. Pass one.")


def _items(path: Path) -> Iterator[Path]:
    """The directories of trees: the path itself, or those of the steps and items below it."""
    return _with_file(path, "_METADATA")


def _with_file(path: Path, name: str) -> Iterator[Path]:
    """The path and the directories two levels below it that have a file of this name."""
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        yield from (file.parent for file in path.glob(pattern))


def _step(item: Path) -> int:
    """The number at the end of a directory's name, such as 7 or checkpoint_7; -1 without one."""
    numbers = [_NUMBER.search(part) for part in item.parts[-2:]]
    return next((int(found[1]) for found in reversed(numbers) if found), -1)


def _restored(orbax: Any, item: Path, tree: Any) -> Any:
    """The arrays of the histories; a placeholder for all others, which are not read."""
    nodes = [jax.tree.leaves(node) for node in stored.history_nodes(tree)]
    wanted = {id(leaf) for leaves in nodes for leaf in leaves}
    kept = jax.tree.map(lambda x: x if id(x) in wanted else orbax.PLACEHOLDER, tree)
    as_numpy = orbax.RestoreArgs(restore_type=np.ndarray)
    restore_args = jax.tree.map(lambda x: as_numpy, kept)
    arguments = orbax.args.PyTreeRestore(item=kept, restore_args=restore_args)
    return orbax.PyTreeCheckpointer().restore(item, args=arguments)


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "Orbax is not installed; it reads the checkpoint: pip install orbax-checkpoint."
        ) from error

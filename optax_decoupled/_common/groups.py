"""Parameters of repeated layers as one line of a report: ``layers/{0..11}/kernel``."""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

from optax_decoupled._common import table

_INTEGER = re.compile(r"\d+")


def alike(paths: Sequence[str], contents: Sequence[Hashable]) -> Iterator[tuple[list[int], str]]:
    """The indices of each line's rows, and the line's name.

    Rows share a line if their contents are equal, their paths differ in their integers alone,
    and no combination of these integers is missing.
    """
    groups: dict[tuple[str, Hashable], list[int]] = {}
    for i, (path, content) in enumerate(zip(paths, contents, strict=True)):
        groups.setdefault((_INTEGER.sub("#", path), content), []).append(i)
    for group in groups.values():
        complete = math.prod(map(len, _slots([paths[i] for i in group]))) == len(group)
        for part in [group] if complete else [[i] for i in group]:
            yield part, _merged([paths[i] for i in part]) or "(the array)"


def distinct(names: Sequence[str], indices: Sequence[int]) -> list[str]:
    """Names that fit the page; those that would read the same end in their row's index."""
    short = [table.shortened(name, table.WIDTH) for name in names]
    times = Counter(short)
    return [
        name
        if times[name] == 1
        else table.shortened(name, table.WIDTH - len(f" [{i}]")) + f" [{i}]"
        for name, i in zip(short, indices, strict=True)
    ]


def _slots(paths: Sequence[str]) -> list[list[str]]:
    """The integers at each place of the paths, sorted."""
    columns = zip(*map(_INTEGER.findall, paths), strict=True)
    return [sorted(set(column), key=lambda digits: (int(digits), digits)) for column in columns]


def _merged(paths: Sequence[str]) -> str:
    """Paths that differ only in their integers as one."""
    texts = iter(slot[0] if len(slot) == 1 else _span(slot) for slot in _slots(paths))
    return _INTEGER.sub(lambda _: next(texts), paths[0])


def _span(digits: Sequence[str]) -> str:
    contiguous = int(digits[-1]) - int(digits[0]) == len(digits) - 1
    if len(digits) > 3 or (contiguous and len(digits) > 2):
        return f"{{{digits[0]}{'..' if contiguous else ',..,'}{digits[-1]}}}"
    return f"{{{','.join(digits)}}}"

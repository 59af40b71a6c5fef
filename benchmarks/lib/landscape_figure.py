"""What Figures 1 and 2 have in common: landscapes in groups, from training to Markdown."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.lib.drawing import draw_landscapes
from benchmarks.lib.harness import write_json
from benchmarks.lib.landscapes import Job, train
from benchmarks.lib.readings import results
from benchmarks.lib.sizes import Run, header
from benchmarks.lib.tables import bullets, landscape_rows, markdown, plain, wrapped

Conclusion = Callable[[dict[str, Any]], list[str]]  # of a record


def make(
    run: Run,
    question: str,
    groups: str,
    jobs: dict[tuple[str, str], Job],
    conclusion: Conclusion,
    ending: Callable[[dict[str, Any]], str] = lambda record: "",
) -> None:
    """Trains the jobs, writes figure and numbers, prints tables, conclusion and ending.

    Args:
      run: what the command line asked for.
      question: of the script.
      groups: what the groups of landscapes are; their key in the record.
      jobs: named (group, optimizer).
      conclusion: the sentences that the record bears out.
      ending: what is printed after them, if anything is.
    """
    start = time.perf_counter()
    landscapes = train(jobs, run.cells)
    record = header(question, run, time.perf_counter() - start) | {groups: results(landscapes)}
    image, numbers = (run.out / f"{run.name}.{kind}" for kind in ("png", "json"))
    network = run.size.network
    titles = {group: group if group == network else f"{network}, {group}" for group in landscapes}
    draw_landscapes(landscapes, titles, image)
    write_json(numbers, record)
    for group, result in record[groups].items():
        print(plain(landscape_rows(group, result)))
    print(wrapped(conclusion(record)))
    print(ending(record))
    print(f"Figure: {image}\nNumbers: {numbers}")


def body(record: dict[str, Any], groups: str, conclusion: Conclusion) -> list[str]:
    """The tables and the conclusion in Markdown."""
    tables = [markdown(landscape_rows(group, x)) for group, x in record[groups].items()]
    return [*tables, bullets(conclusion(record))]

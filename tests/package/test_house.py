"""The rooms of the package: which may import which, and how many files they hold."""

import ast
import graphlib
from pathlib import Path

import optax_decoupled as od

ROOT = Path(od.__file__).parent
# A room imports from itself and from the rooms before it. "" is the package's __init__.
ROOMS = ["_version", "_common", "_select", "_state", "_transforms", "convert", "schedules"]
ROOMS += ["equilibrium", "_optimizers", "_plan", "_explain", "_watch", "types", "", "sweep"]
ROOMS += ["__main__"]
FILES = sorted(ROOT.rglob("*.py"))


def imports(file: Path) -> set[Path]:
    """The files of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(od.__name__):
            base = (node.module or "").split(".")[1:]
            found |= {file_of([*base, alias.name]) for alias in node.names}
    return found - {file}


def file_of(parts: list[str]) -> Path:
    """The file of a module, or of the module that holds a name."""
    path = ROOT.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((x for x in candidates if x.is_file()), None) or file_of(parts[:-1])


def room(file: Path) -> int:
    first = file.relative_to(ROOT).parts[0].removesuffix(".py")
    return ROOMS.index("" if first == "__init__" else first)


GRAPH = {file: imports(file) for file in FILES}


def test_no_import_runs_up():
    pairs = [(file, other) for file, others in GRAPH.items() for other in others]
    assert len(pairs) > 100
    assert [(str(a), str(b)) for a, b in pairs if room(b) > room(a)] == []


def test_no_imports_run_in_a_circle():
    assert len(list(graphlib.TopologicalSorter(GRAPH).static_order())) == len(FILES)


def test_a_folder_holds_at_most_a_dozen_files():
    folders = {file.parent for file in FILES}
    assert max(len(list(folder.glob("*.py"))) for folder in folders) <= 12

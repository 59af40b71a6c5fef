"""Every Python block of the site's pages runs, page by page; the API page lists what is public.

The build itself (`make docs`) fails on broken links and anchors.
"""

import re
from types import ModuleType

import pytest
from pages import BLOCK, DOCS, PAGES, run_page

import optax_decoupled as od


@pytest.mark.parametrize("name", [n for n, path in PAGES.items() if BLOCK.search(path.read_text())])
def test_a_pages_code_runs(name):
    assert run_page(name)


def test_the_api_page_lists_what_is_public():
    listed = re.findall(r"^   ([\w.]+)$", PAGES["api"].read_text(), re.MULTILINE)
    everything = {name: getattr(od, name) for name in dir(od)}
    modules = {name: x for name, x in everything.items() if isinstance(x, ModuleType)}
    of_modules = {f"{name}.{x}" for name, module in modules.items() for x in module.__all__}
    flat = everything.keys() - {"__version__", *modules}
    assert sorted(listed) == sorted(flat | of_modules - {"types.Equilibrium"})


def test_every_figure_is_shown():
    shown = set()
    for path in PAGES.values():
        shown |= set(re.findall(r"^\.\. plot:: figures/(\w+)\.py$", path.read_text(), re.MULTILINE))
    assert shown == {path.stem for path in (DOCS / "figures").glob("*.py")}

"""Every Python block of the site's pages runs, page by page; the API page lists what is public.

The build itself (`make docs`) fails on broken links and anchors.
"""

import re
from types import ModuleType

import jax
import jax.numpy as jnp
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


# A row of the table of architectures, and a name in one of its cells: `gate` of shape (8, 4).
ROW = re.compile(r"^\| ([^|]+) \| ([^|]*)\| ([^|]*)\|$", re.MULTILINE)
NAME = re.compile(r"`([\w/]+)`(?: of shape \(([\d, ]*)\))?")


def architectures():
    """Per architecture: the names that decay and those that do not, each with its shape."""
    table = PAGES["select_it"].read_text().split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    shape = lambda text: tuple(int(n) for n in text.split(",") if n.strip())
    named = lambda cell: {
        name: shape(found) if (found or "of shape" in rest) else (4, 4)
        for name, found, rest in ((m[1], m[2] or "", m[0]) for m in NAME.finditer(cell))
    }
    return {row[1]: (named(row[2]), named(row[3])) for row in ROW.finditer(table)}


def test_the_table_of_architectures_is_read_as_it_is_meant():
    found = architectures()
    assert len(found) >= 15
    assert found["activations, temperatures"][1]["temperature"] == ()
    assert found["gated cross-attention"][0] == {"mlp/gate_proj/kernel": (4, 4), "gate": (8, 4)}
    assert sum(len(names) for cells in found.values() for names in cells) > 60


@pytest.mark.parametrize("architecture", architectures())
def test_decay_mask_selects_what_the_table_of_architectures_says(architecture):
    decays, spared = architectures()[architecture]
    params = {"block": {}}
    for name, shape in (decays | spared).items():
        node = params["block"]
        *modules, leaf = name.split("/")
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    flat, _ = jax.tree_util.tree_flatten_with_path(od.decay_mask(params)["block"])
    found = {"/".join(key.key for key in path): selected for path, selected in flat}
    assert found == dict.fromkeys(decays, True) | dict.fromkeys(spared, False)


def test_every_figure_is_shown():
    shown = set()
    for path in PAGES.values():
        shown |= set(re.findall(r"^\.\. plot:: figures/(\w+)\.py$", path.read_text(), re.MULTILINE))
    assert shown == {path.stem for path in (DOCS / "figures").glob("*.py")}

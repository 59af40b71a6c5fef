"""decay_mask on the parameter names and shapes of public models."""

import jax
import jax.numpy as jnp
import pytest
from model_trees import MODELS, Model

import optax_decoupled as od


def leaves(model: Model) -> list[tuple[bool, tuple[str, ...], tuple[int, ...]]]:
    """Whether each parameter should decay, its path, its shape."""
    rows = [line.split() for line in model.leaves.strip().splitlines()]
    return [
        ({"+": True, "-": False}[sign], tuple(path.split("/")), tuple(map(int, shape.split("x"))))
        for sign, path, shape in rows
    ]


def nested(entries):
    """A tree of dicts from pairs of a path and a leaf."""
    tree = {}
    for path, leaf in entries:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        assert path[-1] not in node
        node[path[-1]] = leaf
    return tree


def masks(rows):
    """What decay_mask selects, and what it should."""
    params = nested((path, jax.ShapeDtypeStruct(shape, jnp.float32)) for _, path, shape in rows)
    return od.decay_mask(params), nested((path, decays) for decays, path, _ in rows)


@pytest.mark.parametrize("name", MODELS)
def test_decay_mask_selects_what_should_decay(name):
    found, expected = masks(leaves(MODELS[name]))
    assert found == expected


@pytest.mark.parametrize("name", MODELS)
def test_it_selects_the_same_of_a_stack_of_layers(name):
    """Scanned and vmapped layers have one axis more, in front."""
    rows = [(decays, path, (5, *shape)) for decays, path, shape in leaves(MODELS[name])]
    found, expected = masks(rows)
    assert found == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_parameters_of_both_kinds(name):
    decays = [decays for decays, _, _ in leaves(MODELS[name])]
    assert any(decays)
    assert not all(decays)
    assert MODELS[name].source.startswith("github.com/")

"""Every optimizer and wrapper that Optax exports: its state is placed, leaf by leaf."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_decoupled as od

# The arguments of those that do not come with defaults. (Wrappers wrap Adam.)
ADAM = optax.adam(0.1)
ARGUMENTS = {
    "adaptive_grad_clip": dict(clipping=0.1),
    "add_noise": dict(eta=0.1, gamma=0.5, key=0),
    "apply_if_finite": dict(inner=ADAM, max_consecutive_errors=2),
    "chain": (ADAM, optax.scale(1.0)),
    "clip": dict(max_delta=1.0),
    "clip_by_block_rms": dict(threshold=1.0),
    "clip_by_global_norm": dict(max_norm=1.0),
    "conditionally_mask": dict(inner=ADAM, should_transform_fn=lambda step: step > 2),
    "conditionally_transform": dict(inner=ADAM, should_transform_fn=lambda step: step > 2),
    "differentially_private_aggregate": dict(l2_norm_clip=1.0, noise_multiplier=1.0, key=0),
    "dpsgd": dict(learning_rate=0.1, l2_norm_clip=1.0, noise_multiplier=1.0, seed=0),
    "ema": dict(decay=0.9),
    "flatten": dict(inner=ADAM),
    "freeze": dict(mask={"kernel": True, "bias": False}),
    "lookahead": dict(fast_optimizer=ADAM, sync_period=2, slow_step_size=0.5),
    "masked": dict(inner=ADAM, mask={"kernel": True, "bias": False}),
    "mechanize": dict(base_optimizer=ADAM),
    "multi_transform": dict(transforms={"a": ADAM}, param_labels="a"),
    "named_chain": (("adam", ADAM),),
    "noisy_sgd": dict(learning_rate=0.1, key=0),
    "partition": dict(transforms={"a": ADAM}, param_labels="a"),
    "sam": dict(optimizer=ADAM, adv_optimizer=optax.sgd(0.1)),
    "scale": dict(step_size=0.1),
    "scale_by_backtracking_linesearch": dict(max_backtracking_steps=3),
    "scale_by_schedule": dict(step_size_fn=optax.constant_schedule(0.1)),
    "scale_by_zoom_linesearch": dict(max_linesearch_steps=3),
    "schedule_free": dict(base_optimizer=ADAM, learning_rate=0.1),
    "selective_transform": dict(optimizer=ADAM, freeze_mask={"kernel": False, "bias": True}),
    "split_real_and_imaginary": dict(inner=ADAM),
    "trace": dict(decay=0.9),
    "with_extra_args_support": dict(tx=ADAM),
}
# Measurements, factories of factories, and what is given up: they make no optimizer of a run.
NO_OPTIMIZERS = {
    "inject_hyperparams",
    "inject_stateful_hyperparams",
    "measure_with_ema",
    "monitor",
    "snapshot",
    "stateless",
    "stateless_with_tree_map",
}


def _factories():
    """Factories by name: all that says that it returns a transformation."""
    found = {}
    for module in (optax, optax.contrib):
        for name, factory in inspect.getmembers(module, inspect.isfunction):
            returned = str(inspect.signature(factory).return_annotation)
            if not name.startswith("_") and "GradientTransformation" in returned:
                found[name] = factory
    return found


FACTORIES = _factories()
NAMES = sorted(FACTORIES.keys() - NO_OPTIMIZERS)


def _make(name):
    arguments = ARGUMENTS.get(name)
    if isinstance(arguments, tuple):
        return FACTORIES[name](*arguments)
    if arguments is None:
        required = inspect.signature(FACTORIES[name]).parameters
        arguments = {"learning_rate": 0.1} if "learning_rate" in required else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optax, about its own deprecated arguments
        return FACTORIES[name](**arguments)


def test_the_table_knows_all_of_them():
    """A new release of Optax shows here what it adds."""
    assert len(NAMES) > 60
    assert ARGUMENTS.keys() <= FACTORIES.keys()
    for name in NAMES:
        assert hasattr(_make(name), "init"), name


@pytest.mark.parametrize("name", NAMES)
def test_states_are_placed_like_their_parameters(name):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    layout = {"kernel": P("data", "model"), "bias": P("model")}
    shapes = {"kernel": (8, 4), "bias": (4,)}
    params = {
        key: jax.ShapeDtypeStruct(
            shapes[key], jnp.float32, sharding=NamedSharding(mesh, layout[key])
        )
        for key in shapes
    }
    if name == "lookahead":
        params = optax.LookaheadParams(params, params)
    tx = _make(name)
    shardings = od.opt_state_shardings(tx, params)
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    for (keys, leaf), sharding in zip(flat, jax.tree.leaves(shardings), strict=True):
        key = next((k for k in shapes if k in str(keys)), None)
        like_its_parameter = key is not None and leaf.shape == shapes[key]
        expected = layout[key] if like_its_parameter else P()
        assert sharding == NamedSharding(mesh, expected), jax.tree_util.keystr(keys)

"""Masks: which parameters decay. The same rules select the same parameters in every framework."""

import dataclasses
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze

import optax_decoupled as od

DECAY = 1e-3


def decayed_paths(tx, params, update_params=None) -> dict[str, float]:
    """Path → fraction removed from weights of 1 by one step with zero gradients."""
    state = tx.init(params)
    params = params if update_params is None else update_params
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, ones)
    flat, _ = jax.tree_util.tree_flatten_with_path(updates)
    fractions = {}
    for keys, u in flat:
        boxed = keys and keys[-1] == jax.tree_util.GetAttrKey("value")
        names = [
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", ""))))
            for k in (keys[:-1] if boxed else keys)
        ]
        first = np.ravel(u)[0]
        assert np.isfinite(first)
        assert np.all(np.asarray(u) == first)
        fractions["/".join(names)] = -float(first)
    return fractions


def selected(mask, params) -> set[str]:
    """The paths that a mask function selects with multiplier 1."""
    fractions = decayed_paths(od.add_decoupled_weight_decay(DECAY, mask=mask), params)
    assert set(fractions.values()) <= {np.float32(DECAY), 0.0}
    return {path for path, fraction in fractions.items() if fraction}


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x)
        x = nn.LayerNorm(name="norm")(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(2, name="last")(x)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.LayerNorm(name="ln")(x)
        return nn.Dense(4, name="dense")(x), None


class LinenScanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return stack(name="layers")(x, None)[0]


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.bn(self.norm(self.first(x))))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.ln = nnx.LayerNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4, 4, rngs=rngs)


class NnxVmapped(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return NnxBlock(rngs)

        self.layers = make(rngs)


class EqxModel(eqx.Module):
    first: eqx.nn.Linear
    between: eqx.nn.Sequential
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(3, 4, key=keys[0])
        self.between = eqx.nn.Sequential([eqx.nn.LayerNorm(4), eqx.nn.Lambda(jax.nn.relu)])
        self.last = eqx.nn.Linear(4, 2, key=keys[1])


class PreNormBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(3)
        self.linear = eqx.nn.Linear(3, 3, key=key)

    def __call__(self, x):
        return self.linear(self.norm(x))


class Dense(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layers:
    first: Dense
    norm: dict
    last: list


@jax.tree_util.register_pytree_node_class
class Named:
    """An array with named axes: a pytree class that gives its child no name."""

    def __init__(self, array, axes=("a", "b")):
        self.array, self.axes = array, axes

    def tree_flatten(self):
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes, children):
        return cls(*children, axes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Boxed:
    content: Any


def _boxes(box):
    """Two layers and a norm whose arrays are in boxes."""
    ones = jnp.ones((2, 2))
    layer = lambda: {"kernel": box(ones), "bias": box(ones)}
    return {"first": layer(), "norm": {"scale": box(ones)}, "last": layer()}


def _linen(model, shape=(2, 3)):
    return model.init(jax.random.key(0), jnp.ones(shape))["params"]


def _plain():
    kernel, bias = jnp.ones((3, 4)), jnp.ones(4)
    return Layers(Dense(kernel, bias), {"scale": bias, "bias": bias}, [kernel, bias])


def _pure(state):
    return nnx.to_pure_dict(state)


TWO_DENSE = {"first/kernel", "last/kernel"}
MODELS = {
    "linen": (lambda: _linen(LinenModel()), TWO_DENSE),
    "linen frozen": (lambda: freeze(_linen(LinenModel())), TWO_DENSE),
    "linen scanned": (lambda: _linen(LinenScanned(), (2, 4)), {"layers/dense/kernel"}),
    "nnx state": (lambda: nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param), TWO_DENSE),
    "nnx pure": (lambda: _pure(nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param)), TWO_DENSE),
    "nnx vmapped": (
        lambda: nnx.state(NnxVmapped(nnx.Rngs(0)), nnx.Param),
        {"layers/dense/kernel"},
    ),
    "equinox": (
        lambda: eqx.filter(EqxModel(jax.random.key(0)), eqx.is_inexact_array),
        {"first/weight", "last/weight"},
    ),
    "equinox, callable": (
        lambda: eqx.filter(eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0)), eqx.is_inexact_array),
        {"layers/0/weight", "layers/1/weight"},
    ),
    "equinox, a block named like a norm": (
        lambda: PreNormBlock(jax.random.key(0)),
        {"linear/weight"},
    ),
    "named tuple": (lambda: {"first": Dense(jnp.ones((3, 4)), jnp.ones(4))}, {"first/kernel"}),
    "list": (lambda: [{"w": jnp.ones(3), "bias": jnp.ones(2)}, jnp.ones(2)], {"0/w", "1"}),
    "dataclass": (_plain, {"first/kernel", "last/0", "last/1"}),
}
# Boxes around arrays, and the key of their content in JAX's own paths.
BOXES = {"unnamed": (Named, "/0"), "dataclass": (Boxed, "/content")}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize(
    "mask",
    [
        od.decay_mask,
        od.decay_rules(("(first|last)/kernel", 1.0), (".*", 0.0)),
        {"first": {"kernel": True, "bias": False}, "norm": False, "last": True},
    ],
    ids=["decay_mask", "decay_rules", "dict"],
)
def test_boxes_around_arrays_add_no_key_to_the_paths(name, mask):
    box, content = BOXES[name]
    expected = {f"{path}{content}" for path in TWO_DENSE}
    if isinstance(mask, dict):
        expected |= {f"last/bias{content}"}
    assert selected(mask, _boxes(box)) == expected


class ScaleNorm(eqx.Module):
    """A norm that may have another layer in it."""

    gain: jax.Array
    layer: Any


def test_all_of_a_norm_is_spared_but_not_a_layer_within():
    linear = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    outer = od.decay_mask(ScaleNorm(jnp.ones(2), linear))
    assert (outer.layer.weight, outer.layer.bias) == (True, False)
    assert not od.decay_mask(ScaleNorm(jnp.ones(2), linear.weight)).layer


def test_a_partial_of_a_mask_function_is_one():
    mask = jax.tree_util.Partial(od.decay_mask)
    assert selected(mask, {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}) == {"kernel"}


def test_one_attribute_is_no_box_if_it_names_a_parameter():
    layers = {"scale": eqx.nn.Linear(2, 2, use_bias=False, key=jax.random.key(0))}
    params = eqx.filter({**layers, "out": layers["scale"]}, eqx.is_inexact_array)
    assert selected(od.decay_mask, params) == {"scale/weight", "out/weight"}


@pytest.mark.parametrize("name", MODELS)
def test_decay_mask_spares_biases_and_norms(name):
    make, expected = MODELS[name]
    assert selected(od.decay_mask, make()) == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_same_rules_select_the_same_parameters(name):
    make, expected = MODELS[name]
    pattern = "|".join(sorted(expected))
    assert selected(od.decay_rules((pattern, 1.0), default=0.0), make()) == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_built_by_tree_map_selects_everything(name):
    params = MODELS[name][0]()
    everything = selected(None, params)
    assert selected(jax.tree.map(lambda _: True, params), params) == everything
    assert selected(lambda p: jax.tree.map(lambda _: True, p), params) == everything
    assert len(everything) > len(MODELS[name][1])
    assert selected(jax.tree.map(lambda _: False, params), params) == set()


@pytest.mark.parametrize(
    "mask",
    [
        od.decay_mask,
        od.decay_rules((".*kernel", 1.0), (".*", 0.0)),
        {"first": {"kernel": True, "bias": False}, "norm": False, "bn": False, "last": [True]},
    ],
    ids=["decay_mask", "decay_rules", "dict"],
)
def test_nnx_optimizer_decays_what_the_mask_says(mask):
    """nnx.Optimizer passes Variables to init and bare arrays to update."""
    model = NnxModel(nnx.Rngs(0))
    if isinstance(mask, dict):
        mask = {**mask, "last": {"kernel": True, "bias": False}}
    optimizer = nnx.Optimizer(model, od.sgdw(0.1, DECAY, mask=mask), wrt=nnx.Param)
    before = _pure(nnx.state(model, nnx.Param))
    before = jax.tree.map(jnp.copy, before)
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    after = _pure(nnx.state(model, nnx.Param))
    for layer, name in (("first", "kernel"), ("last", "kernel")):
        np.testing.assert_allclose(after[layer][name], (1 - DECAY) * before[layer][name], rtol=1e-5)
    for layer, name in (("norm", "scale"), ("bn", "scale"), ("first", "bias")):
        np.testing.assert_array_equal(after[layer][name], before[layer][name])


def test_a_mask_tree_of_an_nnx_state_fits_an_update_with_bare_arrays():
    state = nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param)
    mask = jax.tree.map(lambda p: p.ndim > 1, state)
    tx = od.add_decoupled_weight_decay(DECAY, mask=mask)
    fractions = decayed_paths(tx, state, _pure(state))
    assert {path for path, fraction in fractions.items() if fraction} == TWO_DENSE


def test_multipliers_scale_the_decay():
    params = _linen(LinenModel())
    mask = od.decay_rules(("first/.*", 0.5), (".*kernel", 2.0), default=0.0)
    fractions = decayed_paths(od.add_decoupled_weight_decay(DECAY, mask=mask), params)
    assert fractions["first/kernel"] == pytest.approx(DECAY / 2)
    assert fractions["first/bias"] == pytest.approx(DECAY / 2)  # the first match wins
    assert fractions["last/kernel"] == pytest.approx(2 * DECAY)
    assert fractions["last/bias"] == 0.0


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), jnp.float32(0.5)])
def test_multipliers_of_any_scalar_type(value):
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = od.add_decoupled_weight_decay(DECAY, mask={"a": value, "b": np.bool_(True)})
    assert decayed_paths(tx, params) == pytest.approx({"a": DECAY / 2, "b": DECAY})


def test_traced_multipliers():
    params = {"a": jnp.ones(2)}

    @jax.jit
    def step(multiplier):
        tx = od.add_decoupled_weight_decay(DECAY, mask={"a": multiplier})
        return tx.update({"a": jnp.zeros(2)}, tx.init(params), params)[0]["a"]

    np.testing.assert_allclose(step(3.0), -3 * DECAY, rtol=1e-6)
    np.testing.assert_array_equal(step(0.0), 0.0)


@pytest.mark.parametrize(
    "mask",
    [
        {"encoder": True, "decoder": False},
        {"encoder": {"a": True, "b": True}, "decoder": False},
        FrozenDict({"encoder": 1.0, "decoder": 0.0}),
    ],
)
def test_prefixes(mask):
    params = {
        "encoder": {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2), "v": jnp.ones(1)}},
        "decoder": {"w": jnp.ones(3)},
    }
    assert selected(mask, params) == {"encoder/a/w", "encoder/b/w", "encoder/b/v"}


@pytest.mark.parametrize("multiplier", [True, 0.5])
def test_a_bare_array_is_a_parameter_tree_too(multiplier):
    tx = od.add_decoupled_weight_decay(DECAY, mask=multiplier)
    assert decayed_paths(tx, jnp.ones(2)) == {"": pytest.approx(multiplier * DECAY)}


@pytest.mark.parametrize("mask", [jnp.array(True), np.array(0.5), "yes"])
def test_a_bare_array_takes_a_python_number_only(mask):
    """An array without axes may be a bool of which `inject_hyperparams` made one."""
    with pytest.raises(ValueError, match=r"mask is .* a single .* for the whole parameter tree"):
        od.adamw(0.1, DECAY, mask=mask).init(jnp.ones(2))


def test_every_transform_takes_a_mask():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    make = {
        "l2": lambda mask: od.l2_to_grad(DECAY, mask=mask),
        "scale adjusted": lambda mask: od.scale_adjusted_l2_to_grad(
            DECAY, {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, mask=mask
        ),
        "adamw": lambda mask: od.adamw(0.1, DECAY, mask=mask),
        "adamwr": lambda mask: od.adamwr(0.1, 0.01, first_cycle_steps=100, mask=mask),
        "sgdwr": lambda mask: od.sgdwr(0.1, 0.01, first_cycle_steps=100, mask=mask),
        "decouple": lambda mask: od.decouple(optax.sgd(0.1), DECAY, mask=mask),
        "adam_l2": lambda mask: od.adam_l2(0.1, DECAY, mask=mask),
        "sgd_l2": lambda mask: od.sgd_l2(0.1, DECAY, mask=mask),
    }
    for name, factory in make.items():
        fractions = decayed_paths(factory(od.decay_mask), params)
        assert fractions["kernel"] != 0.0, name
        assert fractions["bias"] == 0.0, name


def test_rules_inside_masked_and_partition_may_match_other_transforms_parameters():
    """Optax replaces the parameters of other transforms by MaskedNode."""
    params = {"a": {"kernel": jnp.ones(2)}, "b": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    rules = od.decay_rules(("a/.*", 0.5), (".*kernel", 1.0), default=0.0)
    decay = od.add_decoupled_weight_decay(DECAY, mask=rules)
    tx = optax.masked(decay, {"a": {"kernel": False}, "b": {"kernel": True, "bias": True}})
    assert decayed_paths(tx, params) == {
        "a/kernel": 0.0,
        "b/kernel": pytest.approx(DECAY),
        "b/bias": 0.0,
    }
    labels = {"a": {"kernel": "sgd"}, "b": {"kernel": "adam", "bias": "adam"}}
    tx = optax.partition(
        {"sgd": od.sgdw(0.1, 2 * DECAY), "adam": od.adamw(0.1, DECAY, mask=rules)}, labels
    )
    assert decayed_paths(tx, params) == {
        "a/kernel": pytest.approx(2 * DECAY),
        "b/kernel": pytest.approx(DECAY),
        "b/bias": 0.0,
    }


def test_rules_may_match_parameters_of_a_masked_subtree():
    params = {name: {"kernel": jnp.ones(2)} for name in ("encoder", "decoder", "embed")}
    params["embed"] = {"table": jnp.ones(2)}
    rules = od.decay_rules(("encoder/.*", 0.5), ("(decoder|head)/.*", 1.0), ("embed/table", 0.0))
    groups = {name: od.adamw(0.1, DECAY, mask=rules) for name in "ab"}
    tx = optax.partition(groups, {"encoder": "a", "decoder": "b", "embed": "b"})
    assert decayed_paths(tx, params) == {
        "encoder/kernel": pytest.approx(DECAY / 2),
        "decoder/kernel": pytest.approx(DECAY),
        "embed/table": 0.0,
    }
    wrong = od.decay_rules((".*/kernal", 1.0), default=0.0)
    tx = optax.masked(
        od.adamw(0.1, DECAY, mask=wrong), {"encoder": False, "decoder": True, "embed": True}
    )
    with pytest.raises(ValueError, match=r"kernal' matches no .*below 'encoder' cannot be seen"):
        tx.init(params)


def test_rules_may_match_parameters_of_masked_subtrees_at_any_depth():
    layer = {"kernel": jnp.ones(2), "norm": {"scale": jnp.ones(2)}}
    params = {"a": layer, "b": optax.MaskedNode(), "deep": {"c": optax.MaskedNode(), "d": layer}}
    for pattern in ["b/.*", "[b]/kernel", "[b]/scale", ".*c/norm/scale", "deep/[c]/kernel"]:
        rules = od.decay_rules((pattern, 1.0), default=0.0)
        assert selected(rules, params) == set(), pattern
    for pattern in ["[b]/weight", "deep/[c]/d/kernel", "[b]/norm/kernel"]:
        with pytest.raises(ValueError, match=r"matches no .*'b', 'deep/c' cannot be seen"):
            od.decay_rules((pattern, 1.0), default=0.0)(params)


def test_a_prefix_may_stand_for_masked_parameters_alone():
    masked = optax.MaskedNode()
    params = {"encoder": {"layer": {"kernel": masked}}, "head": jnp.ones(2)}
    for mask in ({"encoder": True, "head": 0.5}, {"encoder": {"layer": True}, "head": 0.5}):
        tx = od.add_decoupled_weight_decay(DECAY, mask=mask)
        assert decayed_paths(tx, params) == {"head": pytest.approx(DECAY / 2)}
    with pytest.raises(ValueError, match="no parameters: 'decoder'"):
        od.add_decoupled_weight_decay(DECAY, mask={"decoder": True, "head": 0.5}).init(params)


def test_only_rules_that_are_sure_to_be_idle_are_refused():
    """Below 500 masked layers any of 500 names may stand: too many pairs to try."""
    params = {f"a{i}": {f"w{i}": jnp.ones(())} for i in range(500)}
    hidden = {f"b{i}": optax.MaskedNode() for i in range(500)}
    rules = od.decay_rules(("b499/w499x?", 1.0), ("b[0-9]*/w499", 0.5), ("none", 0.5), default=0.0)
    assert not any(jax.tree.leaves(rules(params | hidden)))
    with pytest.raises(ValueError, match=r"'b499/w499x\?' matches no"):
        rules(params)
    leaves = {f"b{i}": optax.MaskedNode() for i in range(500)} | {f"a{i}": 1.0 for i in range(500)}
    with pytest.raises(ValueError, match="'none' matches no"):  # no layers: nothing lies below
        od.decay_rules(("none", 0.5), default=0.0)(leaves)


def test_names_of_split_complex_parameters():
    params = {
        "dense": {"kernel": jnp.ones(2, jnp.complex64), "bias": jnp.ones(2, jnp.complex64)},
        "norm": {"weight": jnp.ones(2, jnp.complex64)},
    }
    tx = optax.contrib.split_real_and_imaginary(od.adamw(0.1, DECAY, mask=od.decay_mask))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert float(jnp.real(updates["dense"]["kernel"][0])) == pytest.approx(-DECAY)
    assert not jnp.any(updates["dense"]["bias"])
    assert not jnp.any(updates["norm"]["weight"])


def test_map_params_works_with_every_kind_of_mask():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    for mask in (
        None,
        od.decay_mask,
        {"kernel": True, "bias": False},
        lambda _: {"kernel": 1, "bias": 0},
    ):
        tx = od.adamw(0.1, DECAY, mask=mask)
        state = tx.init(params)
        doubled = optax.tree.map_params(tx, lambda x: x + 1, state)
        assert jax.tree.structure(doubled) == jax.tree.structure(state)
        np.testing.assert_array_equal(doubled[0].mu["kernel"], 1.0)


def test_scales_follow_the_parameters_by_path():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    adjusted = od.scale_adjusted_l2_to_grad(DECAY, {"a": 2.0, "b": 3.0})
    tx = optax.masked(adjusted, {"a": True, "b": False})
    assert decayed_paths(tx, params) == {"a": pytest.approx(-2 * DECAY), "b": 0.0}
    state = nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param)
    tx = od.scale_adjusted_l2_to_grad(DECAY, jax.tree.map(lambda p: 2.0, state))
    assert decayed_paths(tx, state, _pure(state))["first/kernel"] == pytest.approx(-2 * DECAY)
    empty = {"a": np.zeros((0, 2))}  # a scale without elements is not asked for its least one
    od.scale_adjusted_l2_to_grad(DECAY, empty).init(empty)


def test_a_parameter_called_value_keeps_its_name():
    params = {"attention": {"query": jnp.ones(2), "value": jnp.ones(2)}}
    assert selected(od.decay_rules((".*/value", 1.0), default=0.0), params) == {"attention/value"}


UNDECAYED = """
bias b_bias bias_ih scale q_scale LayerNorm_0/w bn1/w ln_f/w input_layernorm/weight rms/g
BatchNorm_0/scale group_norm/w pre_ln/w norm/value layer_normalization/gamma
BatchNormalization_0/beta norms/0/gamma dense/beta layer_scale/gamma dense/offset b_qkv
RMSNorm_0/w attn_norm/w norm1/w LN_f/w norm_q/w subln/weight
A_log A_logs log_a dt_bias log_step log_dt a_param nu_log theta_log gamma_log Lambda_re Lambda_im
sinks attn_sink attention/sinks ls1 ls2 ls1/gamma ls2/w layer_scale layer_scale1/lambda1
LayerScale_0/w layerscale/w x0_lambda resid_lambdas lambda_q1 lambda_1 diff_lambda
negative_slope slopes PReLU_0/alpha prelu/weight act_prelu1/a
"""
DECAYED = """
kernel weight w embedding normal_dense/w lnk/w scaled/w PreNorm_0/Dense_0/kernel b
unnormalized_proj/kernel norm_mlp/kernel normalized/w lora_b dense/lora_b pos_embed cls_token probe
D d catalog a_params log_table sink_token sinkhorn/w kitchensink ls1_proj/w xls1/w layer_scale_mlp/w
lambda_proj LambdaNet_0/kernel lambdarank lambda/kernel gamma/kernel slope/kernel prelu_mlp/kernel
prelude/w register_tokens mask_token router/kernel gate/kernel gate_proj/kernel a_gate/w w_gate
gate_up_proj position_table skip/weights
"""


@pytest.mark.parametrize("name", UNDECAYED.split())
def test_undecayed_names(name):
    params: Any = jnp.ones((2, 2))
    for key in reversed(name.split("/")):
        params = {key: params}
    assert selected(od.decay_mask, params) == set()
    assert selected(od.decay_mask, {name: jnp.ones((2, 2))}) == set()


# Matrices between embedding and head, which a norm usually follows, and those of the two.
HIDDEN = """
block/kernel block/output/kernel block/logits/kernel block/head/query/kernel attn_head/kernel
multi_head/kernel attention_output/kernel headroom/kernel stem/embedment/kernel
"""
NOT_HIDDEN = """
embed/kernel embeds/w unembed/kernel model/embedder/w model/pos_embedding/w embeddings/w wte/w
h/wpe/w vocab/w head/kernel output/kernel logits_dense/kernel classifier/kernel readout/kernel
model/head/kernel model/lm_head/w model/LM_Head/w model/head block/norm/scale
"""


@pytest.mark.parametrize("name", (HIDDEN + NOT_HIDDEN).split())
def test_names_of_hidden_matrices(name):
    """Their decay is multiplied by the squared schedule in `adamc`."""
    tx = od.adamc(0.1, DECAY, schedule=lambda step: 0.5)
    params: Any = jnp.ones((2, 2))
    for key in reversed(name.split("/")):
        params = {key: params}
    factor = 0.25 if name in HIDDEN.split() else 0.5
    assert decayed_paths(tx, params) == {name: pytest.approx(factor * DECAY)}
    vectors = jax.tree.map(lambda x: x[0], params)
    assert decayed_paths(tx, vectors) == {name: pytest.approx(0.5 * DECAY)}


@pytest.mark.parametrize("name", DECAYED.split())
def test_decayed_names(name):
    params: Any = jnp.ones(2)
    for key in reversed(name.split("/")):
        params = {key: params}
    assert selected(od.decay_mask, params) == {name}
    assert selected(od.decay_mask, {name: jnp.ones(2)}) == {name}


# Names of one layer, and which of them decay.
SIBLINGS = {
    "w b": "w",
    "W b": "W",
    "kernel b": "kernel",
    "w1 b1 w2 b2": "w1 w2",
    "w_qkv b_qkv": "w_qkv",
    "a b": "a b",
    "w a b": "w a b",
    "lora_a lora_b": "lora_a lora_b",
    "a_proj b_proj": "a_proj b_proj",
    "A_log D": "",
    "A_logs Ds": "",
    "log_a d": "",
    "log_step B C D": "B C",
    "nu_log B_re B_im C_re C_im D": "B_re B_im C_re C_im",
    "D kernel": "D kernel",
    "A B C D": "A B C D",
    "a_log_proj D": "a_log_proj D",
}


@pytest.mark.parametrize("names", SIBLINGS)
def test_a_short_name_is_a_bias_if_its_weight_is_beside_it(names):
    params = {"layer": {name: jnp.ones((2, 2)) for name in names.split()}}
    expected = {f"layer/{name}" for name in SIBLINGS[names].split()}
    assert selected(od.decay_mask, params) == expected


@pytest.mark.parametrize("name", ["gate", "attn_gate", "gates", "skip_weights", "attnGate"])
def test_gates_are_spared_unless_they_are_matrices(name):
    for shape in [(1,), (3,), (3, 1), (1, 1, 3)]:
        assert not od.decay_mask({"block": {name: jnp.ones(shape)}})["block"][name], shape
    for shape in [(2, 3), (3, 2, 4), (3, 1, 2)]:
        assert od.decay_mask({"block": {name: jnp.ones(shape)}})["block"][name], shape


def test_arrays_without_axes_are_spared_if_they_have_a_name():
    params = {"w": jnp.ones(()), "list": [jnp.float32(1)], "v": jnp.ones(1), "number": 1.0}
    mask = {"w": False, "list": [False], "v": True, "number": False}
    assert od.decay_mask(params) == mask
    stacked = {"temperature": jnp.ones(3)}  # one for each of 3 layers: nothing tells so
    assert od.decay_mask(stacked) == {"temperature": True}


@pytest.mark.parametrize("params", [jnp.ones(()), jnp.float32(2), jnp.ones(3), jnp.ones((2, 2))])
def test_one_bare_array_decays_whatever_its_shape(params):
    assert od.decay_mask(params) is True
    assert selected(od.decay_mask, params) == {""}


PRELUS = {
    "linen": lambda: _linen(nn.PReLU()),
    "nnx": lambda: nnx.state(nnx.PReLU(), nnx.Param),
    "equinox": lambda: eqx.filter(eqx.nn.PReLU(), eqx.is_inexact_array),
    "equinox, stacked": lambda: jax.vmap(lambda x: eqx.nn.PReLU(x))(jnp.ones(3)),
}


@pytest.mark.parametrize("name", PRELUS)
def test_the_slopes_of_activations_are_spared(name):
    params = PRELUS[name]()
    assert jax.tree.leaves(params)
    assert selected(od.decay_mask, {"layer": params}) == set()


def test_rules_may_be_exceptions_from_a_mask_function():
    params = {**_linen(LinenModel()), "embed": {"embedding": jnp.ones((2, 2))}}
    mask = od.decay_rules((".*embedding", 0.0), ("last/kernel", 0.5), default=od.decay_mask)
    fractions = decayed_paths(od.add_decoupled_weight_decay(DECAY, mask=mask), params)
    decayed = {path: fraction for path, fraction in fractions.items() if fraction}
    assert decayed == pytest.approx({"first/kernel": DECAY, "last/kernel": DECAY / 2})


def test_one_list_of_rules_may_serve_several_models():
    rules = [("(.*/)?pos_embedding", 0.0), (".*bias", 0.0), ("cls", 0.0), (".*", 1.0)]
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"'\(\.\*/\)\?pos_embedding' matches no.*unused"):
        od.decay_rules(*rules)(params)
    assert selected(od.decay_rules(*rules, unused="ignore"), params) == {"kernel"}
    with pytest.raises(ValueError, match=r"unused='skip' must be \"error\" or \"ignore\""):
        od.decay_rules(*rules, unused="skip")  # pyright: ignore[reportArgumentType]


def test_a_rule_behind_a_wider_one_is_refused():
    params = {"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"'\.\*bias' never decides: the earlier 'dense/\.\*'"):
        od.decay_rules(("dense/.*", 1.0), (".*bias", 0.0))(params)
    # A last rule for all the rest is fine, also where nothing is left to it.
    od.decay_rules(("dense/.*", 1.0), (".*", 0.0))(params)
    # Nor is one refused that several others cover: elsewhere it may decide.
    od.decay_rules(("dense/k.*", 1.0), ("dense/b.*", 0.0), ("dense/.*", 0.0), (".*", 0.0))(params)


PARAMS = {
    "encoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "decoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
}
STATIC_ARGS = 'static_args=("mask",)'
REFUSED = {
    "a rule without match": (
        od.decay_rules(("encoder/kernl", 1.0), (".*", 0.0)),
        ["'encoder/kernl'", "matches no parameter", "'encoder/kernel'", "Correct or drop"],
    ),
    "a leaf without rule": (
        od.decay_rules((".*/kernel", 1.0)),
        ["No decay rule matches", "'decoder/bias', 'encoder/bias'", "default=0.0"],
    ),
    "text": (
        {"encoder": "yes", "decoder": False},
        ["mask at 'encoder'", "'yes'", "str", "bool", "False"],
    ),
    "None": (
        {"encoder": None, "decoder": False},
        ["mask at 'encoder'", "None", "bool", "False (or 0.0)"],
    ),
    "negative": (
        {"encoder": -0.5, "decoder": 1.0},
        ["mask at 'encoder'=-0.5", ">= 0", "0.0 turns it off"],
    ),
    "elementwise": (
        {"encoder": jnp.ones((2, 2)), "decoder": True},
        ["mask at 'encoder' for 'encoder/bias'", "(2, 2)", "broadcast"],
    ),
    "a missing entry": (
        {"encoder": True},
        ["mask", "structure", "has no entry", "'decoder/bias', 'decoder/kernel'", "decay_rules"],
    ),
    "a foreign entry": (
        {"encoder": True, "decoder": True, "head": True},
        ["mask", "structure", "no parameters: 'head'", "jax.tree.map"],
    ),
    "another shape": (
        {"encoder": [True, False], "decoder": True},
        ["mask", "structure", "'encoder/0'"],
    ),
    "a bare bool": (True, ["mask is True", "single bool", "leave mask out", STATIC_ARGS]),
    "a bare number": (0.5, ["mask is 0.5", "single float", STATIC_ARGS]),
    "a bare array": (jnp.array(True), ["mask is Array(True", "single", STATIC_ARGS]),
    "a function that returns a bool": (lambda _: True, ["mask is True", STATIC_ARGS]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_init(name):
    mask, parts = REFUSED[name]
    for tx in (od.adamw(0.1, DECAY, mask=mask), od.l2_to_grad(DECAY, mask=mask)):
        with pytest.raises((ValueError, TypeError)) as caught:
            tx.init(PARAMS)
        assert re.search(".*".join(map(re.escape, parts)), str(caught.value)), caught.value


@pytest.mark.parametrize("mask", [od.decay_mask, od.decay_rules((".*kernel", 1.0), default=0.0)])
def test_a_mask_function_under_inject_hyperparams(mask):
    with pytest.raises(ValueError, match=re.escape(STATIC_ARGS)):
        optax.inject_hyperparams(od.adamw)(0.1, DECAY, mask=mask).init(PARAMS)
    tx = optax.inject_hyperparams(od.adamw, static_args=("mask",))(0.1, DECAY, mask=mask)
    fractions = decayed_paths(tx, PARAMS)
    assert fractions["encoder/kernel"] == pytest.approx(DECAY)
    assert fractions["encoder/bias"] == 0.0


@pytest.mark.parametrize(
    ("rules", "options", "parts"),
    [
        ([], {}, ["no rule", '(".*", 1.0)']),
        ([".*"], {}, ["decay rule '.*'", "pair (pattern, multiplier)"]),
        ([[(".*", 1.0)]], {}, ["decay rule [(", "pair", "decay_rules(*rules)"]),
        ([("(", 1.0)], {}, ["'('", "not a regular expression"]),
        ([(".*", -1.0)], {}, ["'.*'=-1.0", ">= 0"]),
        ([(".*", "1")], {}, ["'.*'", "'1'", "multiplier >= 0"]),
        ([(".*", 1.0)], {"default": -1.0}, ["default=-1.0", ">= 0"]),
    ],
)
def test_malformed_rules_are_refused_when_they_are_built(rules, options, parts):
    with pytest.raises((ValueError, TypeError)) as caught:
        od.decay_rules(*rules, **options)
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value)), caught.value


STACK = {
    f"block_{i}": {
        "attention": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    for i in range(12)
}


@pytest.mark.parametrize(
    "rules", [[(".*/weights", 1.0), (".*", 0.0)], [("block_1/norm/scale", 1.0)]]
)
def test_the_error_of_rules_names_each_kind_of_parameter_in_a_deep_network(rules):
    with pytest.raises(ValueError, match="matches") as caught:
        od.decay_rules(*rules)(STACK)
    named = re.findall(r"'(block_\d+/[a-z/]+)'", str(caught.value))
    assert {path.rpartition("/")[2] for path in named[:3]} == {"kernel", "bias", "scale"}


def test_the_error_shortens_long_lists():
    params = {"x": jnp.ones(1)} | {f"z{i}": jnp.ones(1) for i in range(50)}
    with pytest.raises(ValueError, match=r"'z\d+' and 45 more\."):
        od.adamw(0.1, DECAY, mask=od.decay_rules(("x", 1.0))).init(params)

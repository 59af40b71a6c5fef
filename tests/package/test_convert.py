"""Weight decay between conventions: closed forms and round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_decoupled as od

rates = st.floats(1e-6, 10.0)
decays = st.floats(0.0, 1.0)


@given(decays, rates)
def test_pytorch_round_trip(decay, rate):
    there = od.convert.to_pytorch(decay, rate)
    assert od.weight_decay_from_pytorch(there, rate) == pytest.approx(decay, rel=1e-12)


@given(decays, rates)
def test_l2_of_proposition_1(decay, rate):
    assert od.convert.to_l2(decay, rate) == decay / rate


@given(st.floats(1.0, 1e9))
def test_half_life_halves(steps):
    decay = od.convert.from_half_life(steps)
    assert steps * np.log1p(-decay) == pytest.approx(np.log(0.5), rel=1e-9)


@given(st.floats(2.0, 1e6))
def test_timescale_is_the_moving_averages(steps):
    decay = od.convert.from_timescale(steps)
    assert decay * steps == pytest.approx(1.0)
    assert od.convert.from_half_life(steps) < decay  # a half-life is log 2 timescales


@pytest.mark.parametrize(
    ("convert", "arguments"),
    [
        (od.weight_decay_from_pytorch, (0.1, 0.02)),
        (od.convert.to_pytorch, (0.1, 0.02)),
        (od.convert.to_l2, (0.1, 0.02)),
        (od.convert.from_half_life, (100.0,)),
        (od.convert.from_timescale, (100.0,)),
    ],
)
def test_arrays_and_tracers_convert_like_numbers(convert, arguments):
    expected = convert(*arguments)
    arrays = [jnp.full(3, x) for x in arguments]
    np.testing.assert_allclose(jax.jit(jax.vmap(convert))(*arrays), [expected] * 3, rtol=1e-6)
    assert type(expected) is float

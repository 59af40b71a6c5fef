"""A long `explain_weight_decay` says on stderr how far it is: in a terminal, and nowhere else."""

import sys
import time

import jax.numpy as jnp
import optax
import pytest
from terminals import terminal

import optax_decoupled as od
from optax_decoupled._common import progress

PARAMS = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}


def slow(seconds):
    """An optimizer whose update takes so long to trace."""
    adamw = optax.adamw(1e-3)

    def update(*trees):
        time.sleep(seconds)
        return adamw.update(*trees)

    return optax.GradientTransformation(adamw.init, update)


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(progress, "AFTER", 0.2)


def explained(monkeypatch, seconds):
    """What a terminal shows meanwhile."""
    with terminal() as (stderr, read):
        monkeypatch.setattr(sys, "stderr", stderr)
        od.explain_weight_decay(slow(seconds), PARAMS)
    return read()


def test_a_terminal_shows_how_far_it_is_and_is_clean_in_the_end(monkeypatch, patient):
    shown = explained(monkeypatch, 0.5)
    assert "explain_weight_decay: 1 of 2, tracing updates of 2 parameters, " in shown
    assert shown.endswith("\r\033[K")


def test_a_short_call_shows_nothing(monkeypatch):
    assert progress.AFTER == 5.0
    assert explained(monkeypatch, 0.0) == ""


def test_a_pipe_gets_nothing(capfd, patient):
    od.explain_weight_decay(slow(0.5), PARAMS)
    assert "".join(capfd.readouterr()) == ""

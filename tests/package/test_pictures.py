"""Plots and HTML tables of plans, reports and histories."""

import html.parser

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from arrays import normal
from steps import jitted_step

import optax_decoupled as od

matplotlib.use("agg")
import matplotlib.pyplot as plt

NAMES = {"<b>&": jnp.ones((4, 4)), "plain": jnp.ones(4)}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def plan():
    eta = optax.cosine_decay_schedule(1.0, 1000)
    return od.plan_weight_decay(1000, weight_decay=2e-3, schedule=eta, learning_rate=0.1)


def history():
    tx = optax.chain(od.adamw(1e-2, 1e-3), od.record_weight_dynamics())
    step, state, params = jitted_step(tx), jax.jit(tx.init)(NAMES), NAMES
    for i in range(20):
        grads = jax.tree.map(lambda p, i=i: normal(p.shape, seed=i), params)
        params, state = step(grads, state, params)
    return od.recorded_weight_dynamics(state, weight_decay=1e-3, learning_rate=1e-2)


def report():
    mask = {"<b>&": True, "plain": False}
    return od.explain_weight_decay(od.adamw(1e-2, 1e-3, mask=mask), NAMES)


def test_a_plan_draws_what_is_left_and_what_the_final_weights_average():
    left, share = plan().plot()
    names = [row.rule for row in plan().rows]
    assert [line.get_label() for line in left.lines] == names
    eta = np.asarray(optax.cosine_decay_schedule(1.0, 1000)(np.arange(1000)), float)
    kept = np.concatenate([[1.0], np.cumprod(1 - 2e-3 * eta)])
    x, y = left.lines[0].get_data()
    np.testing.assert_allclose(y, np.interp(x, np.arange(1001), kept), atol=1e-6)
    np.testing.assert_allclose(y[-1], plan().rows[0].left, rtol=1e-6)
    weights = eta * kept[-1] / kept[1:]
    x, y = share.lines[0].get_data()
    exact = weights / weights.mean()
    np.testing.assert_allclose(y[:-1], np.interp(x[:-1], np.arange(1000), exact), atol=1e-6)
    np.testing.assert_allclose(y.mean(), 1, atol=0.02)


def test_a_run_of_one_step_and_a_decay_of_everything_are_drawn():
    for one in (od.plan_weight_decay(1), od.plan_weight_decay(10, weight_decay=lambda t: 1.0)):
        for axis in one.plot():
            for line in axis.lines:
                assert np.isfinite(line.get_ydata()).all()


def test_a_report_draws_one_bar_a_line_in_the_colour_of_its_kind():
    ax = report().plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["<b>&", "plain"]
    (bar,) = [patch for patch in ax.patches if patch.get_width() > 1]
    np.testing.assert_allclose(bar.get_width(), np.log(2) / 1e-3, rtol=1e-2)
    assert [text.get_text() for text in ax.texts] == ["no decay"]
    assert ax.get_xscale() == "log"
    drawn = report().plot(ax=plt.subplots()[1])
    assert drawn.figure is not ax.figure


def test_a_report_of_many_layers_has_a_bar_a_group_and_not_more_than_can_be_read():
    params = {f"layer_{i}": {"kernel": jnp.ones((4, 4))} for i in range(60)}
    ax = od.explain_weight_decay(od.adamw(1e-2, 1e-3), params).plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer_{0..59}/kernel"]
    mask = {name: {"kernel": 1.3**-i} for i, name in enumerate(params)}
    ax = od.explain_weight_decay(od.adamw(1e-2, 1e-3, mask=mask), params).plot()
    assert len(ax.get_yticklabels()) == 40
    assert ax.get_title().endswith(": 20")


def test_a_history_draws_rms_rotation_and_the_ratio_of_weights_that_decay():
    rms, rotation, ratio = history().plot()
    found = history()
    for ax, field in ((rms, "rms"), (rotation, "rotation")):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), getattr(found.rows[0], field))
    assert len([line for line in ratio.lines if len(line.get_xdata()) > 2]) == 2
    assert ratio.get_visible()
    tx = optax.chain(optax.sgd(0.1), od.record_weight_dynamics())
    _, state = tx.update(NAMES, tx.init(NAMES), NAMES)
    _, state = tx.update(NAMES, state, NAMES)
    unknown = od.recorded_weight_dynamics(state)
    assert not unknown.plot()[2].get_visible()


class _Cells(html.parser.HTMLParser):
    """The texts of all table cells, and the open tags."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.mark.parametrize("make", [plan, report, history])
def test_html_is_a_table_with_the_printed_cells_and_escaped_names(make):
    made = make()
    parsed = _Cells(made._repr_html_())
    assert parsed.open == []
    assert parsed.cells
    printed = " ".join(str(made).split())
    assert all(" ".join(cell.split()) in printed for cell in parsed.cells)
    if make is not plan:
        assert "<b>&" in parsed.cells
        assert "<b>&" not in made._repr_html_()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    for made in (plan(), report(), history()):
        with pytest.raises(ImportError, match=r"optax-decoupled\[sweep\]"):
            made.plot()

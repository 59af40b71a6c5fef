"""Statistics of a landscape leave out diverged cells; saving, printing and drawing one."""

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest

from optax_decoupled import sweep

ERROR = np.array([[[6.0, 7.0], [9.0, 9.0]], [[1.0, 3.0], [np.nan, 8.0]], [[np.nan] * 2] * 2])


@pytest.fixture
def landscape():
    diverged = np.where(np.isnan(ERROR), 5, -1)
    axes = np.array([0.005, 0.05, 0.5]), np.array([1e-4, 1e-3]), np.arange(2)
    return sweep.Landscape(*axes, {"error": ERROR, "loss": 1000 * ERROR}, diverged)


def test_mean_spread_and_best_leave_out_diverged_seeds():
    error = np.array([[[1.0, 3.0, 5.0], [0.0, np.nan, 0.0]], [[np.nan] * 3, [9.0, np.nan, np.nan]]])
    x = sweep.Landscape(np.array([0.1, 0.2]), np.array([0.3, 0.4]), np.arange(3), {"error": error})
    np.testing.assert_array_equal(x.mean(), [[3.0, 0.0], [np.nan, 9.0]])
    np.testing.assert_array_equal(x.spread(), [[2.0, 0.0], [np.nan, np.nan]])
    assert x.best() == (0.1, 0.3, 3.0, 2.0)  # not the cell where one seed diverged


def test_an_unknown_metric_is_refused(landscape):
    with pytest.raises(ValueError, match="it has 'error', 'loss'"):
        landscape.best("accuracy")


def test_save_and_load_round_trip(landscape, tmp_path):
    path = tmp_path / "landscape.npz"
    landscape.save(path)
    loaded = sweep.Landscape.load(path)
    for field in ("learning_rates", "weight_decays", "seeds", "diverged"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(landscape, field))
    assert loaded.metrics.keys() == landscape.metrics.keys()
    np.testing.assert_array_equal(loaded.metrics["error"], landscape.metrics["error"])


def test_saving_follows_no_link_of_a_partial_file(landscape, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "landscape.npz.partial").symlink_to(tmp_path / "precious")
    landscape.save(str(tmp_path / "landscape.npz"))
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_failed_save_keeps_the_file_before(landscape, tmp_path):
    path = tmp_path / "landscape.npz"
    landscape.save(path)
    before = path.read_bytes()
    broken = dataclasses.replace(landscape, metrics={"error": np.full((3, 2, 2), _Unpicklable())})
    with pytest.raises(TypeError, match="cannot be saved"):
        broken.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class _Unpicklable:
    def __reduce__(self):
        raise TypeError("cannot be saved")


def test_a_landscape_prints_as_sentences(landscape):
    assert str(landscape) == (
        "best error 2 ± 1.4 at learning rate 0.05, weight decay 1e-4\n"
        "best loss 2e+03 ± 1.4e+03 at learning rate 0.05, weight decay 1e-4\n"
        "3 learning rates × 2 weight decays × 2 seeds; 5 of 12 cells diverged"
    )
    assert repr(landscape) == (
        "<Landscape of error, loss: 3 learning rates × 2 weight decays × 2 seeds>"
    )


def test_a_best_cell_prints_as_a_sentence(landscape):
    best = landscape.best()
    assert str(best) == f"{best}" == "2 ± 1.4 at learning rate 0.05, weight decay 1e-4"
    assert repr(best).startswith("Best(learning_rate=0.05, weight_decay=0.0001, mean=2.0, spread=")
    assert str(best._replace(spread=np.nan)).startswith("2 at learning rate")  # of one seed


def test_a_landscape_where_all_cells_diverged_prints_that():
    one = np.ones(1)
    text = str(sweep.Landscape(one, one, one, {"error": np.full((1, 1, 1), np.nan)}, np.array(3)))
    assert text == (
        "no best error: in every cell a seed diverged\n"
        "1 learning rate × 1 weight decay × 1 seed; 1 of 1 cells diverged"
    )


def test_a_notebook_shows_a_table(landscape):
    text = landscape._repr_html_()
    root = ElementTree.fromstring(f"<all>{text}</all>")
    error, loss = root.findall("table")
    rows = [["".join(cell.itertext()) for cell in row] for row in error.findall("tr")]
    assert rows == [
        ["rate \\ decay", "1e-4", "1e-3"],
        ["0.5", "diverged", "diverged"],
        ["0.05", "2", "8"],
        ["5e-3", "6.5", "9"],
    ]
    assert [bold.text for bold in error.iter("b")] == ["2"]  # 8 is the mean of the other seed
    assert loss.findtext("caption", "").startswith("loss: best loss 2e+03")
    hostile = sweep.Landscape(*[np.ones(1)] * 3, {"<script>": np.ones((1, 1, 1))})
    assert "<script>" not in hostile._repr_html_()


def test_the_plot_has_the_valley_and_the_cost_of_tuning():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    x, y = np.arange(-3.0, 4), np.arange(-12.0, 3)
    bowl = 5 + x[:, None] ** 2 + (y + 5 + x[:, None]) ** 2
    landscape = sweep.Landscape(2**x, 2**y, np.arange(4), {"error": bowl[..., None] + np.zeros(4)})
    ax = landscape.plot()
    (line,) = [line for line in ax.lines if line.get_color() == "tab:red"]
    rows = np.arange(1, 6)  # the first and the last rate are worse than the grid's median
    np.testing.assert_allclose(line.get_xdata()[1:6], 7 - x[rows], atol=0.05)
    cost = sweep.tuning_cost(landscape).decay_first.worst.value
    assert cost > 4
    assert f"cost of tuning one after the other: {cost:.3g} (decay first)" in ax.get_xlabel()
    few = sweep.Landscape(
        2 ** x[:2], 2**y, np.arange(3), {"error": bowl[:2, :, None] + np.zeros(3)}
    )
    ax = few.plot()
    assert ax.get_xlabel() == "weight decay"
    assert not [line for line in ax.lines if line.get_color() == "tab:red"]
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("size", [1, 5, 20])
def test_plot_draws_every_grid(size):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    error = np.arange(size * size * 2.0).reshape(size, size, 2)
    error[0, -1] = np.nan if size > 1 else 1.0  # diverged, as did one seed of the next
    error[-1, -1, 0] = np.nan if size > 1 else 1.0
    grid = np.arange(1, size + 1) / 10
    ax = sweep.Landscape(grid, grid, np.arange(2), {"error": error}).plot()
    ax.figure.canvas.draw()
    assert len(ax.get_xticks()) <= 10
    matplotlib.pyplot.close(ax.figure)

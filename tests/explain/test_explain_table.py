"""The printed table."""

import dataclasses
import math
import re

import jax.numpy as jnp
import optax
import pytest
from explaining import LR, cases, deep, with_l2

import optax_decoupled as od


def test_rows_of_other_half_lives_have_lines_of_their_own():
    make = lambda momentum: with_l2(optax.sgd(1e-2, momentum), 1e-2)
    tx = optax.partition({"a": make(0.5), "b": make(0.9)}, {"layer_0": "a", "layer_1": "b"})
    text = str(od.explain_weight_decay(tx, {"layer_0": jnp.ones(4), "layer_1": jnp.ones(4)}))
    assert [line.split()[-1] for line in text.splitlines()[-2:]] == ["3,465", "693"]


def test_equal_layers_share_a_line():
    text = str(od.explain_weight_decay(od.adamw(LR, 1e-4, mask=od.decay_mask), deep(12)))
    lines = text.splitlines()
    assert lines[0] == "Weight decay: 13 of 25 parameters decay (228 of 276 weights)."
    assert [line.split()[:2] for line in lines[3:]] == [
        ["embed", "1"],
        ["layer_{0..11}/dense/bias", "12"],
        ["layer_{0..11}/dense/kernel", "12"],
    ]
    assert lines[-1].split()[-2:] == ["1.00e-04", "6,931"]


def test_layers_that_differ_do_not_share_a_line():
    rules = od.decay_rules(("layer_[0-3]/.*", 0.5), (".*/kernel", 1.0), (".*", 0.0))
    text = str(od.explain_weight_decay(od.adamw(LR, 1e-4, mask=rules), deep(7)))
    assert "layer_{0..3}/dense/kernel" in text
    assert "layer_{4,..,6}" not in text
    assert "layer_{4..6}/dense/kernel" in text


def _row(path, **changes):
    row = od.types.DecayRow(path, (3, 2), jnp.dtype("float32"), "decoupled", 1e-4, 6931.0, False)
    return dataclasses.replace(row, **changes)


def test_the_table_fits_80_columns():
    names = [
        f"{'block' * 20}/{'x' * (i % 7)}_{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(80)
    ]
    half = jnp.dtype("bfloat16")
    for lost, kind in [(True, "growing"), (False, "constrained"), (False, "decoupled")]:
        rows = tuple(
            od.types.DecayRow(name, (10**5,) * 4, half, kind, -1.2e-7, math.inf, lost)
            for name in names
        )
        report = od.types.DecayReport(rows, warnings=("word " * 60,), notes=("word " * 60,))
        lines = str(report).splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) < 55
        assert any("more lines" in line for line in lines)
        assert lines[-2].startswith("block")
    assert lines[-1].endswith("never")
    lost = dataclasses.replace(rows[0], lost_to_rounding=True)
    assert str(od.types.DecayReport((lost,))).endswith("lost")


def test_the_last_column_says_its_unit():
    report = od.explain_weight_decay(od.adamw(LR, 1e-4), {"w": jnp.ones((3, 2))})
    header, row = str(report).splitlines()[-2:]
    assert header.endswith("half-life (updates)")
    assert len(row) == len(header)


PATHS = {
    "long names": ["block" * 20 + "/query/" + "x" * 99, "block" * 20 + "/value/" + "x" * 99],
    "equal paths": ["a/b", "a/b"],  # of {"a/b": …} and {"a": {"b": …}}
    "two sets of layers": [f"layer_{i}" for i in (0, 2, 4, 7, 0, 3, 5, 7)],
    "two diagonals": ["a_0/b_1", "a_1/b_0", "a_0/b_0", "a_1/b_1"],
    "zeros": ["a_1", "a_01"],
}


@pytest.mark.parametrize("paths", cases({name: (paths,) for name, paths in PATHS.items()}))
@pytest.mark.parametrize("same", [True, False])
def test_no_two_lines_name_the_same(paths, same):
    lives = [1.0 + (not same) * (2 * i // len(paths)) for i in range(len(paths))]
    rows = [_row(path, half_life=life) for path, life in zip(paths, lives, strict=True)]
    lines = str(od.types.DecayReport(tuple(rows))).splitlines()[3:]
    names = [name for line in lines if (name := re.split("  +", line)[0])]
    assert len(names) > 0
    assert len(set(names)) == len(names)
    counts = re.findall(r"(?m) (\d+)  3x2 ", "\n".join(lines))
    assert sum(map(int, counts)) == len(paths)


def test_only_full_sets_of_layers_share_a_line():
    diagonal = (_row("a_0/b_1"), _row("a_1/b_0"))
    assert "{0,1}" not in str(od.types.DecayReport(diagonal))
    square = (*diagonal, _row("a_0/b_0"), _row("a_1/b_1"))
    assert "a_{0,1}/b_{0,1}" in str(od.types.DecayReport(square))


def test_a_report_can_be_read_in_a_session_and_a_notebook():
    report = od.types.DecayReport((_row("a<b"),), warnings=("a & b",))
    assert repr(report) == str(report)
    assert report._repr_html_().startswith("<p><b>Weight decay: 1 of 1 parameters decay")
    assert "a&lt;b" in report._repr_html_()
    assert "a &amp; b" in report._repr_html_()


def test_check_lists_all_warnings():
    od.types.DecayReport(()).check()
    with pytest.raises(ValueError, match="first thing\nsecond thing"):
        od.types.DecayReport((), ("first thing", "second thing")).check()

"""A benchmark shows a bar in a terminal, and nothing in a pipe."""

import sys

from terminals import terminal

from benchmarks.lib.progress import tracked


def test_a_terminal_shows_the_count_of_what_is_done(monkeypatch):
    with terminal() as (stderr, read):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert list(tracked(range(3), "rounds")) == [0, 1, 2]
    assert "rounds" in read()
    assert "3/3" in read()


def test_a_pipe_gets_nothing(capsys):
    assert list(tracked(range(3), "rounds")) == [0, 1, 2]
    assert "".join(capsys.readouterr()) == ""

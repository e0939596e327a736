"""Progress: a bar on a terminal, lines elsewhere."""

import contextlib
import io
import os
import pty

import pytest

from tff_perfedavg import progress as progress_lib
from tff_perfedavg.progress import progress


def run(file, rounds=5, total=5, initial=0):
    with progress(
        total=total, initial=initial, desc="training", unit="round", file=file
    ) as bar:
        for number in range(rounds):
            bar.set_postfix(loss=f"{1 / (number + 1):.3f}", refresh=False)
            bar.update()


def lines_of(file):
    return file.getvalue().splitlines()


def test_where_there_is_no_terminal_the_end_is_told_in_a_line():
    file = io.StringIO()
    run(file, initial=5, total=10)
    (line,) = lines_of(file)
    assert line.startswith("training: 10/10 rounds, ")
    assert line.endswith("s, loss=0.200")


def test_what_was_done_is_told_where_it_ended_early():
    file = io.StringIO()
    run(file, rounds=2)
    assert lines_of(file)[-1].startswith("training: 2/5 rounds")


def test_a_line_comes_now_and_then_and_no_more_than_every_hundredth(monkeypatch):
    monkeypatch.setattr(progress_lib, "_SECONDS_BETWEEN_LINES", 0.0)
    file = io.StringIO()
    run(file, rounds=1000, total=1000)
    assert len(lines_of(file)) == 100
    assert lines_of(file)[0].startswith("training: 10/1000 rounds")
    monkeypatch.undo()
    file = io.StringIO()
    run(file, rounds=1000, total=1000)
    # None of it took half a minute.
    assert len(lines_of(file)) == 1


def test_a_failure_is_passed_on_with_what_was_done():
    file = io.StringIO()

    def fail():
        with progress(total=3, desc="adapting", unit="user", file=file) as bar:
            bar.update()
            raise KeyError("user")

    with pytest.raises(KeyError, match="user"):
        fail()
    assert lines_of(file)[-1].startswith("adapting: 1/3 users")


def test_a_terminal_gets_a_bar():
    main, other = pty.openpty()
    with os.fdopen(other, "w") as terminal:
        run(terminal)
    shown = ""
    # What is written comes in pieces; its end, with nobody left to write, is an error.
    with contextlib.suppress(OSError):
        while piece := os.read(main, 10_000):
            shown += piece.decode()
    os.close(main)
    assert "\r" in shown
    assert "training: 100%" in shown
    assert "loss=0.200" in shown


def test_of_what_ends_sooner_than_patience_lasts_nothing_is_shown(monkeypatch):
    now = 0.0
    monkeypatch.setattr("tff_perfedavg.progress.time.monotonic", lambda: now)
    for seconds, is_shown in ((10.0, False), (70.0, True)):
        file = io.StringIO()
        with progress(
            total=4, desc="Export", unit="step", patience=60.0, file=file
        ) as bar:
            for _ in range(4):
                now += seconds / 4
                bar.update()
        assert ("Export: 4/4 steps" in file.getvalue()) == is_shown

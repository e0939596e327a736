"""The round loop: whom it calls, when, and how it ends."""

import types

import numpy as np
import pytest

from tff_perfedavg import errors
from tff_perfedavg.experiments.training.rounds import Callback, Start, run_rounds
from tff_perfedavg.experiments.training.simulation import Round


class Counting:
    """Counts rounds in its state; diverges in one if told to."""

    label = "counting"

    def __init__(self, total_rounds, diverges_in=None):
        self.total_rounds = total_rounds
        self._diverges_in = diverges_in

    def next(self, state, round_number):
        assert state == round_number
        if round_number == self._diverges_in:
            raise errors.Diverged(f"Round {round_number} diverged.")
        done = round_number + 1
        is_last = done == self.total_rounds
        return Round(done, is_last, done, {"query_loss": 0.5}, np.zeros([0]), 0, 0)


class Recorder(Callback):
    """Writes down what it is called with, in a list that it shares."""

    def __init__(self, name, calls, stop_after=None, fails_at=None):
        self._name, self._calls = name, calls
        self._stop_after, self._fails_at = stop_after, fails_at

    def _record(self, what, *told):
        self._calls.append((self._name, what, *told))
        if what == self._fails_at:
            raise OSError("disk")

    def begin(self, start):
        self._record("begin", start.done)

    def after_round(self, after):
        self._record("round", after.done)
        return after.done == self._stop_after

    def diverged(self, done, state, error):
        self._record("diverged", done, state)
        return f"{self._name} kept it."

    def end(self):
        self._record("end")


def test_callbacks_are_called_in_their_order_and_end_in_the_other():
    calls = []
    last = run_rounds(Counting(4), Start(2, 2), [Recorder(n, calls) for n in "ab"])
    assert last == Start(4, 4)
    assert calls == [
        *(("a", "begin", 2), ("b", "begin", 2)),
        *(("a", "round", 3), ("b", "round", 3), ("a", "round", 4), ("b", "round", 4)),
        *(("b", "end"), ("a", "end")),
    ]


def test_a_callback_that_stops_the_run_keeps_none_from_being_called():
    calls = []
    callbacks = [Recorder("a", calls, stop_after=1), Recorder("b", calls)]
    assert run_rounds(Counting(3), Start(0, 0), callbacks) == Start(1, 1)
    assert ("b", "round", 1) in calls
    assert ("a", "round", 2) not in calls


def test_callbacks_are_told_of_a_divergence_with_what_was_before_it():
    calls = []
    callbacks = [Recorder("a", calls), Callback(), Recorder("b", calls)]
    with pytest.raises(errors.Diverged) as caught:
        run_rounds(Counting(3, diverges_in=2), Start(0, 0), callbacks)
    assert str(caught.value) == "Round 2 diverged. a kept it. b kept it."
    assert ("a", "diverged", 2, 2) in calls
    assert calls[-2:] == [("b", "end"), ("a", "end")]


@pytest.mark.parametrize("moment", ["begin", "round"])
def test_what_has_begun_ends_though_another_fails(moment):
    calls = []
    callbacks = [Recorder("a", calls), Recorder("b", calls, fails_at=moment)]
    with pytest.raises(OSError, match="disk"):
        run_rounds(Counting(3), Start(0, 0), callbacks)
    ended = [name for name, what, *_ in calls if what == "end"]
    # What never began has nothing to let go of.
    assert ended == (["a"] if moment == "begin" else ["b", "a"])


def test_a_run_that_is_done_is_begun_and_ended_and_no_round_is_run():
    calls = []
    simulation = types.SimpleNamespace(total_rounds=3, label="done", next=None)
    assert run_rounds(simulation, Start(3, 3), [Recorder("a", calls)]) == Start(3, 3)
    assert calls == [("a", "begin", 3), ("a", "end")]

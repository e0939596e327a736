"""The round loop, and the interface of its callbacks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tff_perfedavg import errors
from tff_perfedavg.experiments.training.simulation import Round, Simulation
from tff_perfedavg.progress import progress


class Start(NamedTuple):
    """The start of a run, new or resumed.

    Attributes:
      done: rounds done.
      state: of the learning process after them.
      notes: what callbacks noted in the checkpoint; None for a new run.
    """

    done: int
    state: Any
    notes: Mapping[str, Any] | None = None


class Callback:
    """Base class of the round loop's callbacks; its methods do nothing.

    Callbacks are called in their order, and none of them changes the state.
    """

    def begin(self, start: Start) -> None:
        """Called before the first round."""

    def after_round(self, after: Round) -> bool:
        """Called after every round; returns whether to stop with it."""
        return False

    def diverged(self, done: int, state: Any, error: errors.Diverged) -> str:
        """Called when a round has diverged.

        Args:
          done: rounds done before it.
          state: after these.
          error: the reason.

        Returns:
          What the user is told besides, a sentence or nothing.
        """
        return ""

    def notes(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps for `begin` of a resumed run, as JSON."""
        return {}

    def end(self) -> None:
        """Called last, however the run ends, if `begin` went well."""


def run_rounds(
    simulation: Simulation, start: Start, callbacks: Sequence[Callback]
) -> Start:
    """Runs rounds until all are done or a callback asks to stop.

    Args:
      simulation: runs a round.
      start: where to begin.
      callbacks: called in their order.

    Returns:
      Where the run could go on.

    Raises:
      Diverged: if a round does not lead to finite weights, with what the callbacks
        say of it.
    """
    done, state = start.done, start.state
    with contextlib.ExitStack() as ends:
        for callback in callbacks:
            callback.begin(start)
            ends.callback(callback.end)
        try:
            with progress(
                total=simulation.total_rounds,
                initial=done,
                desc=simulation.label,
                unit="round",
            ) as bar:
                stops = False
                while done < simulation.total_rounds and not stops:
                    after = simulation.next(state, done)
                    done, state = after.done, after.state
                    loss = after.metrics["query_loss"]
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                    bar.update()
                    # All of them are called, whoever asks to stop.
                    stops = any([c.after_round(after) for c in callbacks])
        except errors.Diverged as e:
            told = [callback.diverged(done, state, e) for callback in callbacks]
            raise errors.Diverged(" ".join([str(e), *filter(None, told)])) from e
    return Start(done, state)

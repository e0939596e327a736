"""Replay of a schedule: rounds that were simulated before, in the simulator's place."""

from __future__ import annotations

from typing import Any

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.schedule import Schedule, ServerStep


class Replay:
    """The rounds of a schedule, as `Simulator` gives them.

    Attributes:
      clock_s: seconds since the start of the simulation.
    """

    def __init__(self, schedule: Schedule, work: Work, users: np.ndarray):
        """Starts at time 0.

        Args:
          schedule: of a simulation.
          work: what a task costs.
          users: int `[n]`, numbers of the users that may take part.

        Raises:
          ConfigError: if other users have tasks, or tasks of another cost.
        """
        tasks = schedule.tasks
        strangers = np.setdiff1d(tasks["user"], users)
        if len(strangers):
            raise errors.ConfigError(
                f"The schedule has tasks of user {strangers[0]}, who is none of the "
                f"{len(users)} that train; simulate as many users as train."
            )
        for field, own in (("bytes_down", work.bytes_down), ("steps", work.steps)):
            most = int(tasks[field].max(initial=0))
            if most != own:
                raise errors.ConfigError(
                    f"The schedule's tasks have {field} {most}, and those of the run "
                    f"{own}; simulate it with the run's work."
                )
        self.clock_s = 0.0
        self._rounds: dict[int, list[ServerStep]] = {}
        for step in schedule.steps:
            self._rounds.setdefault(step.number, []).append(step)

    def attempts(self, number: int) -> list[ServerStep]:
        """Returns the attempts at a round, without going on; the last is taken.

        Args:
          number: of the round, from 0.

        Raises:
          ConfigError: if the schedule ends before it.
        """
        attempts = self._rounds.get(number, [])
        if not attempts or not attempts[-1].is_taken:
            raise errors.ConfigError(
                f"The schedule has no round {number}; it has {len(self._rounds)}, from "
                "0. Simulate more, or train fewer."
            )
        return attempts

    def next_round(self, number: int) -> list[ServerStep]:
        """Goes on to the end of a round; returns and raises as `attempts`."""
        attempts = self.attempts(number)
        self.clock_s = attempts[-1].end_s
        return attempts

    def state(self) -> dict[str, Any]:
        """Returns the state, all that the next round depends on, as JSON."""
        return {"clock_s": self.clock_s}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state that `state` returned."""
        self.clock_s = state["clock_s"]

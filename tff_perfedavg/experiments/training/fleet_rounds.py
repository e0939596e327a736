"""Simulated rounds of a fleet: who completes, and time, bytes and energy spent."""

from __future__ import annotations

from typing import Any

import numpy as np

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.fleet import (
    build_fleet_of_run,
    build_protocol,
    build_work,
    told_by_settings,
)
from tff_perfedavg.experiments.files.checkpoints import Saved
from tff_perfedavg.experiments.files.fleet_rows import ESTIMATES
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.schedule import ServerStep
from tff_perfedavg.fleet.simulator import Simulator


class FleetRounds:
    """A run's simulated fleet, its clock and its cumulative cost.

    Attributes:
      classes: names of the device classes.
      work: what a task costs.
    """

    def __init__(self, experiment: Experiment, population: UserStore, work: Work):
        """Draws the devices of the store's users.

        Args:
          experiment: its fleet, and the users of a round.
          population: the users.
          work: what a task costs.

        Raises:
          ConfigError: if the fleet cannot be read, or its protocol cannot work.
          DataError: if its trace cannot be read.
        """
        settings = experiment.fleet_of_run
        fleet = build_fleet_of_run(experiment, population)
        protocol = build_protocol(settings, experiment.cohorts.clients_per_round)
        users = np.asarray(population.training_users)
        with told_by_settings():
            self._simulator = Simulator(fleet, protocol, work, users)
        self._totals = np.zeros([2 + len(ESTIMATES)])
        self.classes = fleet.spec.classes
        self.work = work

    @told_by_settings()
    def next_round(self, number: int) -> list[ServerStep]:
        """Runs a round until it is not abandoned; returns its attempts."""
        steps = self._simulator.next_round(number)
        for step in steps:
            tasks = step.tasks
            self._totals[0] += tasks["bytes_down"].sum()
            self._totals[1] += tasks["bytes_up"].sum()
            self._totals[2:] += tasks["joules"].sum(0)
        return steps

    def spent(self) -> dict[str, float]:
        """Returns the clock, and bytes and joules since its start, by name."""
        names = ("bytes_down", "bytes_up", *(f"joules_{name}" for name in ESTIMATES))
        totals = zip(names, self._totals.tolist(), strict=True)
        return {
            "fleet_hours": self._simulator.clock_s / 3600,
            **{f"fleet_{name}": total for name, total in totals},
        }

    def state(self) -> dict[str, Any]:
        """Returns all that the next round depends on, as JSON."""
        return {**self._simulator.state(), "totals": self._totals.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state that `state` returned."""
        self._simulator.restore(state)
        self._totals = np.array(state["totals"])


def work_of(experiment: Experiment, saved: Saved | None = None) -> Work | None:
    """Returns the cost of a run's task, as saved or measured now; None for no fleet.

    Args:
      experiment: the run.
      saved: the checkpoint that it goes on from. Measured again, a task would take
        another time, and the run another course.

    Raises:
      ConfigError: if what a task costs is not said, or cannot be read.
      ModelError: if the exported file cannot be measured.
    """
    if not experiment.fleet_of_run.is_on:
        return None
    if saved is not None:
        return Work.of_record(saved.notes["fleet"]["work"])
    local = experiment.local
    return build_work(experiment.fleet_of_run, local.num_local_steps, local.method)

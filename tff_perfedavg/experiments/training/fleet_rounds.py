"""Simulated rounds of a fleet: who completes, and time, bytes and energy spent."""

from __future__ import annotations

from typing import Any

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.fleet import (
    MODEL_FILE,
    build_fleet_of_run,
    build_protocol,
    build_work,
    told_by_settings,
)
from tff_perfedavg.experiments.files.checkpoints import Saved
from tff_perfedavg.experiments.files.fleet_rows import ESTIMATES
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.fleet import Fleet
from tff_perfedavg.fleet.replay import Replay
from tff_perfedavg.fleet.schedule import Schedule, ServerStep
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
          DataError: if its trace, or the schedule to replay, cannot be read.
        """
        settings = experiment.fleet_of_run
        fleet = build_fleet_of_run(experiment, population)
        goal = experiment.cohorts.clients_per_round
        users = np.asarray(population.training_users)
        self._simulator: Simulator | Replay
        if settings.fleet_schedule:
            self._simulator = _replay(experiment, fleet, work, users)
        else:
            with told_by_settings():
                protocol = build_protocol(settings, goal)
                self._simulator = Simulator(fleet, protocol, work, users)
        self._totals = np.zeros([2 + len(ESTIMATES)])
        self.classes = fleet.spec.classes
        self.work = work
        self._file = settings.fleet_work

    def check_file(self, num_bytes: int) -> None:
        """Checks that an exported file whose work was measured is of the run's model.

        Args:
          num_bytes: of what the server sends, float32.

        Raises:
          ConfigError: if it is not.
        """
        is_file = self._file.endswith(MODEL_FILE)
        if is_file and self.work.bytes_down != num_bytes:
            raise errors.ConfigError(
                f"fleet_work is {self._file}, whose clients are sent "
                f"{self.work.bytes_down:,} bytes; those of this run are sent "
                f"{num_bytes:,}. Export a run with this run's model and method."
            )

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


def _replay(
    experiment: Experiment, fleet: Fleet, work: Work, users: np.ndarray
) -> Replay:
    """Reads the schedule of a run, and checks that it is of this fleet and cohort."""
    path = experiment.fleet_of_run.fleet_schedule
    schedule = Schedule.load(path)
    goal = experiment.cohorts.clients_per_round
    most = max((len(step.taken) for step in schedule.steps), default=0)
    if most > goal:
        raise errors.ConfigError(
            f"{path} has rounds of {most} reports, and clients_per_round is {goal}; "
            "simulate it with the run's."
        )
    tasks = schedule.tasks
    of_users = fleet.records["device"][tasks["user"] % len(fleet.records)]
    if schedule.classes != fleet.spec.classes or (of_users != tasks["device"]).any():
        raise errors.ConfigError(
            f"{path} is of other phones than fleet {experiment.fleet_of_run.fleet} "
            f"gives the users with base_random_seed {experiment.base_random_seed}; "
            "simulate it with the run's fleet and seed."
        )
    replay = Replay(schedule, work, users)
    # Before any training: that the last round is there.
    replay.attempts(experiment.total_rounds - 1)
    return replay


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
    return build_work(
        experiment.fleet_of_run, local.num_local_steps, local.method, local.batch_size
    )

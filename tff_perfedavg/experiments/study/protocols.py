"""Simulation of protocols on the same fleet and rounds, without training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.experiments.assemble.fleet import build_protocol, told_by_settings
from tff_perfedavg.experiments.settings.fleet_settings import FleetSettings
from tff_perfedavg.fleet.availability import DAY, HOUR
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.fleet import Fleet
from tff_perfedavg.fleet.schedule import ServerStep
from tff_perfedavg.fleet.simulator import Simulator
from tff_perfedavg.progress import progress
from tff_perfedavg.settings import kind_of, settings_of

AS_GIVEN = "as given"
# What no protocol is: the fleet, and what its tasks cost.
_SHARED = (
    "fleet",
    "fleet_work",
    "upload_bits",
    "device_table",
    "device_assignment",
)


def variants(
    settings: FleetSettings, changes: Sequence[str]
) -> dict[str, FleetSettings]:
    """Returns the protocol given, and variants of it, by their names.

    Args:
      settings: the protocol given.
      changes: of each other protocol, settings with spaces between them:
        `over_selection=1.3 round_deadline=60`.

    Raises:
      ConfigError: if a change is no setting of a protocol, or out of range.
    """
    found = {AS_GIVEN: settings}
    known = [name for name in settings_of(FleetSettings) if name not in _SHARED]
    for text in changes:
        values = {}
        for part in text.split():
            name, equals, value = part.partition("=")
            errors.check_known("setting of a protocol", name, known)
            kind = kind_of(FleetSettings, name)
            try:
                if not equals:
                    raise ValueError
                values[name] = kind(value)
            except ValueError as e:
                raise errors.ConfigError(
                    f"{part!r} gives {name} no {kind.__name__}; write {name}=VALUE."
                ) from e
        found[text] = dataclasses.replace(settings, **values)
    return found


def simulate(
    fleet: Fleet,
    protocols: Mapping[str, FleetSettings],
    work: Work,
    goal: int,
    num_rounds: int,
    users: np.ndarray,
) -> dict[str, list[ServerStep]]:
    """Simulates the rounds of each protocol, by its name.

    Args:
      fleet: the devices.
      protocols: settings by name.
      work: what a task costs.
      goal: reports of a round.
      num_rounds: rounds taken.
      users: int `[n]`, numbers of the users that may be chosen.

    Raises:
      ConfigError: if a protocol cannot work, naming it.
    """
    simulators, found = {}, {}
    # All of them are built before the first runs, so that what cannot work is told.
    for label, settings in protocols.items():
        with _named(label):
            protocol = build_protocol(settings, goal)
            simulators[label] = Simulator(fleet, protocol, work, users)
    for label, simulator in simulators.items():
        steps: list[ServerStep] = []
        with (
            _named(label),
            progress(total=num_rounds, desc=label, unit="round") as bar,
        ):
            for number in range(num_rounds):
                steps += simulator.next_round(number)
                bar.update()
        found[label] = steps
    return found


@told_by_settings()
def simulate_hours(
    fleet: Fleet,
    settings: FleetSettings,
    work: Work,
    goal: int,
    num_rounds: int,
    users: np.ndarray,
) -> list[list[ServerStep]]:
    """Simulates rounds at each hour of the day, as many in each.

    Args:
      fleet: the devices.
      settings: of the protocol.
      work: what a task costs.
      goal: reports of a round.
      num_rounds: rounds taken in each hour.
      users: of `simulate`.

    Returns:
      The steps of each of the 24 hours (UTC), which are those of days apart: whoever is
      late in one is done before the next.

    Raises:
      ConfigError: if the protocol cannot work.
    """
    protocol = build_protocol(settings, goal)
    simulator = Simulator(fleet, protocol, work, users)
    hours = []
    with progress(total=24, desc="hours", unit="hour") as bar:
        for hour in range(24):
            # Rounds may take longer than hours.
            day = np.ceil(simulator.clock_s / DAY)
            simulator.clock_s = float(day * DAY + hour * HOUR)
            steps: list[ServerStep] = []
            for number in range(num_rounds):
                steps += simulator.next_round(hour * num_rounds + number)
            hours.append(steps)
            bar.update()
    return hours


@contextlib.contextmanager
def _named(label: str) -> Iterator[None]:
    """Tells with an error which protocol it is of."""
    try:
        with told_by_settings():
            yield
    except errors.ConfigError as e:
        raise errors.ConfigError(f"Protocol {label!r}: {e}") from e

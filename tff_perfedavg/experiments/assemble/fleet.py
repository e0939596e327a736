"""Builders of a fleet, its round protocol and the cost of its tasks from settings."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.fleet_settings import METHOD, FleetSettings
from tff_perfedavg.fleet import draws
from tff_perfedavg.fleet.cost import Work, read_device_table
from tff_perfedavg.fleet.devices import find_spec
from tff_perfedavg.fleet.fleet import Fleet
from tff_perfedavg.fleet.names import BY_LABEL, BY_ROWS, INDEPENDENT, TRACE_NAME
from tff_perfedavg.fleet.population import draw_users
from tff_perfedavg.fleet.protocol import SyncRound
from tff_perfedavg.fleet.traces import Trace

# How an exported file's name ends, of which work is measured.
MODEL_FILE = ".tflite"
# Settings that are fields of a protocol, where their names differ.
_SETTINGS = {
    "goal": "clients_per_round",
    "deadline_s": "round_deadline",
    "late": "late_reports",
    "leaving": "leaving_devices",
    "needs": "device_conditions",
    "most_battery": "battery_limit",
    "interval_s": "round_interval",
}


@contextlib.contextmanager
def told_by_settings() -> Iterator[None]:
    """Context manager that renames a protocol's fields to settings in its errors."""
    try:
        yield
    except errors.ConfigError as e:
        told = re.sub(r"SyncRound\.(\w+)", lambda m: _SETTINGS.get(m[1], m[1]), str(e))
        raise errors.ConfigError(told) from e


def build_fleet(
    settings: FleetSettings,
    num_users: int,
    seed: int,
    population: UserStore | None = None,
) -> Fleet:
    """Builds a fleet: draws the device of each user.

    Args:
      settings: which fleet, and what device classes go by.
      num_users: how many.
      seed: what all is keyed by.
      population: the users' data, where classes go by them.

    Raises:
      ConfigError: if the fleet cannot be read, or classes go by data that are not
        there.
      DataError: if its trace cannot be read.
    """
    spec = find_spec(settings.fleet)
    trace = pathlib.Path(settings.fleet) / TRACE_NAME
    ranks = None
    if settings.device_assignment != INDEPENDENT:
        if population is None:
            raise errors.ConfigError(
                f"device_assignment is {settings.device_assignment}, which goes by "
                "users' data, and there are none; leave it out."
            )
        ranks = _ranks(population, settings.device_assignment, seed)
    users = draw_users(spec, num_users, seed, ranks)
    if not trace.is_file():
        return Fleet(spec, users, seed)
    if settings.needs:
        raise errors.ConfigError(
            f"device_conditions is {settings.device_conditions}, but {trace} says when "
            "phones are on; leave out one of the two."
        )
    return Fleet(spec, users, seed, Trace.load(trace).availability())


def build_fleet_of_run(experiment: Experiment, population: UserStore) -> Fleet:
    """Builds the fleet of an experiment's users.

    Args:
      experiment: its settings.
      population: the users' store.

    Raises:
      ConfigError, DataError: as `build_fleet`.
    """
    num_users, seed = len(population.users), experiment.base_random_seed
    return build_fleet(experiment.fleet_of_run, num_users, seed, population)


def _ranks(population: UserStore, by: str, seed: int) -> np.ndarray:
    """Returns where users stand by their data, from 0 to 1; ties by chance."""
    bounds = np.asarray(population.users)
    if by == BY_ROWS:
        values = bounds[:, 1] - bounds[:, 0]
    else:
        assert by == BY_LABEL
        if population.description.num_classes is None:
            raise errors.ConfigError(
                f"device_assignment is {by}, but the labels of {population.path} are "
                "no classes; give by_rows."
            )
        values = np.array(
            [
                np.bincount(population.adaptation(user).y, minlength=1).argmax()
                for user in range(len(bounds))
            ]
        )
    ties = draws.uniform(seed, draws.TIES, np.arange(len(values)))
    order = np.lexsort([ties, values])
    ranks = np.empty(len(order))
    ranks[order] = (np.arange(len(order)) + 0.5) / len(order)
    return ranks


@told_by_settings()
def build_protocol(settings: FleetSettings, goal: int) -> SyncRound:
    """Builds the synchronous round protocol of the settings.

    Args:
      settings: of the fleet.
      goal: reports that a round needs.

    Raises:
      ConfigError: naming the setting that is out of range.
    """
    deadline = settings.round_deadline
    return SyncRound(
        goal,
        over_selection=settings.over_selection,
        deadline_s=np.inf if deadline is None else deadline,
        min_reports=settings.min_reports,
        late=settings.late_reports,
        leaving=settings.leaving_devices,
        needs=settings.needs,
        most_battery=settings.battery_limit,
        interval_s=settings.round_interval,
    )


def build_work(
    settings: FleetSettings,
    num_steps: int | None = None,
    method: str = METHOD,
    batch_size: int | None = None,
) -> Work:
    """Returns the cost of a task in time and bytes, measured now or earlier.

    Args:
      settings: name the exported file, or the earlier measurement.
      num_steps: local steps of a task; None for as many as were measured.
      method: the run's, which stands in the file's name for `{method}`.
      batch_size: rows of the run's batches; None for any.

    Raises:
      ConfigError: if neither is named, it cannot be read, or the file is of another
        method or of smaller batches.
      ModelError: if the exported file cannot be measured.
    """
    if not settings.fleet_work:
        raise errors.ConfigError(
            "fleet_work is missing: a fleet needs to know what a task costs. Export a "
            "model with export_tflite and give its file, or a JSON of steps, fixed_s, "
            "step_s, bytes_down and bytes_up."
        )
    path = pathlib.Path(settings.fleet_work.replace(METHOD, method))
    if path.suffix == MODEL_FILE:
        # Loads LiteRT, which nothing else here needs.
        from tff_perfedavg.ondevice.runner import OnDeviceModel
        from tff_perfedavg.ondevice.timing import time_meta_update

        model = OnDeviceModel(path)
        _check_card(model.card, path, method, batch_size)
        work = Work(**time_meta_update(model)._asdict())
    else:
        work = Work.load(path)
    if num_steps is not None:
        work = dataclasses.replace(work, steps=num_steps)
    if settings.upload_bits is not None:
        # As many weights go up as come down, and these come as float32.
        bits = work.bytes_down / 4 * settings.upload_bits
        work = dataclasses.replace(work, bytes_up=max(1, math.ceil(bits / 8)))
    if settings.device_table:
        table = read_device_table(settings.device_table)
        work = dataclasses.replace(work, by_class=table)
    return work


def _check_card(card, path: pathlib.Path, method: str, batch_size: int | None) -> None:
    """Checks that an exported file does what a run's clients do."""
    found = card["variant"]
    if method not in (METHOD, found):
        raise errors.ConfigError(
            f"fleet_work is {path}, a file of method {found}; the run's is {method}, "
            "whose steps take another time. Export a run of that method."
        )
    # Smaller batches are padded in the file, so they take as long.
    if batch_size is not None and card["batch_size"] < batch_size:
        raise errors.ConfigError(
            f"fleet_work is {path}, whose batches hold {card['batch_size']} rows; "
            f"those of the run hold {batch_size}. Export it with batch_size "
            f"{batch_size}."
        )

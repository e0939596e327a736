"""Cost of a task: seconds, bytes and joules of each of its phases.

A task is a client update with its transfers: download, training, upload. Durations
depend on sizes, not on weights, so that they can be told without training.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write
from tff_perfedavg.fleet.devices import Estimate, FleetSpec, Link


@dataclasses.dataclass(frozen=True)
class Work:
    """Device-independent cost of a task: steps, seconds and bytes.

    Training takes `fixed_s + steps * step_s` on a device of speed 1.

    Attributes:
      steps: local steps of a whole task.
      fixed_s: seconds of training beside its steps.
      step_s: seconds of a local step.
      bytes_down: the server sends to a device.
      bytes_up: a device sends back.
      by_class: (fixed_s, step_s) of device classes as measured on such a device, its
        speed included, by the class's name.

    Raises:
      ConfigError: if a value is missing or out of range.
    """

    steps: int
    fixed_s: float
    step_s: float
    bytes_down: int
    bytes_up: int
    by_class: Mapping[str, tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self):
        for field, least in (("steps", 1), ("bytes_down", 1), ("bytes_up", 1)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise errors.ConfigError(
                    f"Work.{field} is {value!r}; it must be a whole number, at least "
                    f"{least}."
                )
        _check_seconds("Work", self.fixed_s, self.step_s)
        for name, seconds in self.by_class.items():
            _check_seconds(f"Work.by_class[{name!r}]", *seconds)

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON."""
        with atomic_write(pathlib.Path(path)) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n")

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Work:
        """Builds the work from a record of `dataclasses.asdict`, as JSON has it.

        Raises:
          ConfigError, TypeError: as the constructor.
        """
        by_class = {k: tuple(v) for k, v in record.get("by_class", {}).items()}
        return cls(**{**record, "by_class": by_class})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Work:
        """Reads what `save` wrote.

        Raises:
          ConfigError: if it cannot be read, or a value is missing or out of range.
        """
        try:
            return cls.of_record(json.loads(pathlib.Path(path).read_text()))
        except (OSError, ValueError, TypeError, AttributeError) as e:
            raise errors.ConfigError(
                f"{path} does not say what a task costs: {e} It needs steps, fixed_s, "
                "step_s, bytes_down and bytes_up."
            ) from e


def read_device_table(path: str | os.PathLike) -> dict[str, tuple[float, float]]:
    """Reads a CSV table of milliseconds measured on devices of each class.

    Args:
      path: of a CSV file with the columns class, fixed_ms and step_ms.

    Returns:
      (fixed_s, step_s) by class.

    Raises:
      ConfigError: if a column or a number is missing or negative; with the line.
    """
    found: dict[str, tuple[float, float]] = {}
    needed = ["class", "fixed_ms", "step_ms"]
    try:
        with open(path, newline="") as file:
            table = csv.DictReader(file)
            if missing := [n for n in needed if n not in (table.fieldnames or [])]:
                raise errors.ConfigError(
                    f"{path} has no column {', '.join(missing)}; it needs class, "
                    "fixed_ms and step_ms."
                )
            for row in table:
                name = row["class"]
                place = f"{path}, line {table.line_num}"
                if name in found:
                    raise errors.ConfigError(f"{place}: {name} is there twice.")
                try:
                    fixed, step = float(row["fixed_ms"]), float(row["step_ms"])
                except (TypeError, ValueError) as e:
                    raise errors.ConfigError(
                        f"{place}: fixed_ms and step_ms must be numbers, not "
                        f"{row['fixed_ms']!r} and {row['step_ms']!r}."
                    ) from e
                _check_seconds(place, fixed, step)
                found[name] = fixed / 1000, step / 1000
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise errors.ConfigError(f"{path} could not be read as CSV: {e}.") from e
    return found


class Phases(NamedTuple):
    """Durations and power of tasks' phases without interruption; arrays `[n]`.

    Attributes:
      down_s: seconds of the download.
      fixed_s: seconds of training beside its steps.
      step_s: seconds of a local step.
      up_s: seconds of the upload.
      watts: `[n, 3 phases, 3]`: of download, training and upload; low, middle, high.
    """

    down_s: np.ndarray
    fixed_s: np.ndarray
    step_s: np.ndarray
    up_s: np.ndarray
    watts: np.ndarray

    def joules(self, seconds: np.ndarray) -> np.ndarray:
        """Returns tasks' energy, given the seconds spent in each phase.

        Args:
          seconds: `[n, 3]`: of download, training and upload.

        Returns:
          `[n, 3]`: low, middle and high.
        """
        return np.einsum("np,npe->ne", seconds, self.watts)


class Costs:
    """Cost model of tasks of one kind of work in a fleet."""

    def __init__(self, spec: FleetSpec, work: Work):
        """Works out medians by class.

        Raises:
          ConfigError: if measured seconds name a class that the fleet has not, or leave
            out one that it has.
        """
        names = spec.classes
        if work.by_class and {*work.by_class} != {*names}:
            raise errors.ConfigError(
                f"Seconds were measured for {', '.join(sorted(work.by_class))}, but "
                f"the fleet {spec.name} has {', '.join(sorted(names))}; measure each "
                "class of the fleet, and no other."
            )
        self.work = work
        self._seconds = np.array(
            [
                work.by_class.get(
                    d.name, (work.fixed_s / d.speed, work.step_s / d.speed)
                )
                for d in spec.devices
            ]
        )
        # By class and whether the link is mobile.
        links = [(d.wifi, d.mobile) for d in spec.devices]
        self._rates = np.array([[_rates(k) for k in both] for both in links])
        self._watts = np.array(
            [
                [_watts(k, d.training_watts) for k in (d.wifi, d.mobile)]
                for d in spec.devices
            ]
        )

    def phases(self, records: np.ndarray, is_mobile: np.ndarray) -> Phases:
        """Returns the durations and power of tasks' phases.

        Args:
          records: of the users, `population.RECORD` `[n]`.
          is_mobile: bool `[n]`, whether each user's link is the mobile one.
        """
        device, link = records["device"], is_mobile.astype(np.int64)
        speed = records["speed"].astype(np.float64)
        rates = self._rates[device, link]
        fixed, step = self._seconds[device].T
        return Phases(
            down_s=self.work.bytes_down / (rates[:, 0] * records["down"]),
            fixed_s=fixed / speed,
            step_s=step / speed,
            up_s=self.work.bytes_up / (rates[:, 1] * records["up"]),
            watts=self._watts[device, link],
        )


def _rates(link: Link) -> tuple[float, float]:
    """Bytes a second, down and up."""
    return link.down_mbps * 1e6 / 8, link.up_mbps * 1e6 / 8


def _watts(link: Link, training: Estimate) -> list[Estimate]:
    return [link.receive_watts, training, link.send_watts]


def _check_seconds(place: str, fixed: float, step: float) -> None:
    for name, value, is_in_range, needed in (
        ("fixed part", fixed, fixed >= 0, "0 or more"),
        ("step", step, step > 0, "above 0"),
    ):
        if not (is_in_range and math.isfinite(value)):
            raise errors.ConfigError(
                f"{place}: the time of the {name} is {value!r}; it must be {needed}."
            )

"""Device classes, links and the description of a fleet, with its files.

A fleet is described by one TOML file, `mixed.toml` beside this module for example, in
which every number names its source or says that it is an assumption. Copy it, edit it,
and name its directory.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from tff_perfedavg import errors
from tff_perfedavg.fleet.availability import Daily
from tff_perfedavg.fleet.names import CONDITIONS, FILE_NAME, IDEAL, MIXED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# Shares must sum to 1 up to this.
_SLACK = 1e-6


class Estimate(NamedTuple):
    """A three-point estimate: low, middle and high."""

    low: float
    mid: float
    high: float


@dataclasses.dataclass(frozen=True)
class Link:
    """A device's connection to the server.

    Attributes:
      down_mbps: median rate of downloads, in million bits a second.
      up_mbps: of uploads.
      sigma: standard deviation of the natural logarithm of users' rates.
      receive_watts: power while receiving.
      send_watts: power while sending.
    """

    down_mbps: float
    up_mbps: float
    sigma: float
    receive_watts: Estimate
    send_watts: Estimate


@dataclasses.dataclass(frozen=True)
class DeviceClass:
    """Devices of one kind.

    Attributes:
      name: of the class.
      share: of the fleet's users.
      speed: of computing, where 1 is the machine on which a step was measured.
      speed_sigma: standard deviation of the natural logarithm of users' speeds.
      training_watts: power while training, above that of an idle device.
      battery_wh: energy of a full battery.
      wifi: the link where it is unmetered.
      mobile: the link elsewhere.
    """

    name: str
    share: float
    speed: float
    speed_sigma: float
    training_watts: Estimate
    battery_wh: Estimate
    wifi: Link
    mobile: Link


@dataclasses.dataclass(frozen=True)
class Zone:
    """Users of one time zone.

    Attributes:
      utc_hours: local time minus UTC, in whole quarters of an hour.
      share: of the fleet's users.
    """

    utc_hours: float
    share: float


@dataclasses.dataclass(frozen=True)
class FleetSpec:
    """Description of a fleet: device classes, time zones, availability, drop-outs.

    Attributes:
      name: of the fleet.
      devices: the classes, whose shares sum to 1.
      zones: the time zones, whose shares sum to 1.
      conditions: chances by the hour of `CONDITIONS`; one that is missing always holds.
      drop_outs_per_hour: rate at which devices leave while they work, whatever else.
      sources: of each number, by its place in the file.
    """

    name: str
    devices: tuple[DeviceClass, ...]
    zones: tuple[Zone, ...]
    conditions: Mapping[str, Daily]
    drop_outs_per_hour: float
    sources: Mapping[str, str] = dataclasses.field(repr=False, default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the device classes."""
        return tuple(device.name for device in self.devices)


def find_spec(name: str) -> FleetSpec:
    """Returns the description of a bundled fleet, or of a directory's.

    Args:
      name: `ideal`, `mixed`, or a directory with a file fleet.toml.

    Raises:
      ConfigError: if there is none; and as `read_spec`.
    """
    if name in (IDEAL, MIXED):
        return read_spec(pathlib.Path(__file__).parent / f"{name}.toml")
    path = pathlib.Path(name) / FILE_NAME
    if not path.is_file():
        raise errors.ConfigError(
            f"fleet is {name!r}; there is no file {path}. Give ideal, mixed, or a "
            f"directory with a {FILE_NAME}."
        )
    return read_spec(path)


def read_spec(path: str | os.PathLike) -> FleetSpec:
    """Reads a fleet's description from TOML.

    Args:
      path: of a TOML file like mixed.toml.

    Raises:
      ConfigError: if it cannot be read, or a value is missing, unknown, out of range or
        without a source; naming the file, the place and what is needed.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise errors.ConfigError(f"{path} could not be read as TOML: {e}.") from e
    return _Reader(path).spec(found)


class _Reader:
    """Parser of a fleet's TOML file, which keeps the sources of its numbers."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._sources: dict[str, str] = {}

    def spec(self, found: dict[str, Any]) -> FleetSpec:
        self._check_names(
            found,
            "",
            {"name", "device", "zone", "drop_outs_per_hour"},
            optional=set(CONDITIONS),
        )
        devices = tuple(
            self._device(table, f"device {table.get('name', number)}")
            for number, table in self._tables(found, "device")
        )
        zones = tuple(
            self._zone(table, f"zone {number}")
            for number, table in self._tables(found, "zone")
        )
        names = [device.name for device in devices]
        if len({*names}) < len(names):
            self._refuse("device", "two classes have one name", "name each differently")
        self._check_shares("device", [d.share for d in devices])
        self._check_shares("zone", [z.share for z in zones])
        conditions = {
            name: self._daily(found[name], name) for name in CONDITIONS if name in found
        }
        rate = self._number(found, "", "drop_outs_per_hour", least=0)
        return FleetSpec(
            found["name"], devices, zones, conditions, rate, dict(self._sources)
        )

    def _tables(self, found: dict[str, Any], name: str):
        """Returns numbered tables of a list: `[[device]]`, `[[zone]]`."""
        tables = found[name]
        if not isinstance(tables, list):
            self._refuse(name, repr(tables), f"give each as a table [[{name}]]")
        for number, table in enumerate(tables):
            if not isinstance(table, dict):
                where = f"{name} {number}"
                self._refuse(where, repr(table), f"give a table [[{name}]]")
        return enumerate(tables)

    def _device(self, table: dict[str, Any], place: str) -> DeviceClass:
        fields = {f.name for f in dataclasses.fields(DeviceClass)}
        self._check_names(table, place, fields)
        return DeviceClass(
            name=str(table["name"]),
            share=self._number(table, place, "share", above=0, most=1),
            speed=self._number(table, place, "speed", above=0),
            speed_sigma=self._number(table, place, "speed_sigma", least=0),
            training_watts=self._estimate(table, place, "training_watts"),
            battery_wh=self._estimate(table, place, "battery_wh", above=0),
            wifi=self._link(table["wifi"], f"{place}, wifi"),
            mobile=self._link(table["mobile"], f"{place}, mobile"),
        )

    def _link(self, table: dict[str, Any], place: str) -> Link:
        self._check_names(table, place, {f.name for f in dataclasses.fields(Link)})
        return Link(
            down_mbps=self._number(table, place, "down_mbps", above=0),
            up_mbps=self._number(table, place, "up_mbps", above=0),
            sigma=self._number(table, place, "sigma", least=0),
            receive_watts=self._estimate(table, place, "receive_watts"),
            send_watts=self._estimate(table, place, "send_watts"),
        )

    def _zone(self, table: dict[str, Any], place: str) -> Zone:
        self._check_names(table, place, {"utc_hours", "share"})
        hours = self._number(table, place, "utc_hours", least=-12, most=14)
        if hours * 4 % 1:
            self._refuse(f"{place}, utc_hours", f"{hours:g}", "give whole quarters")
        return Zone(hours, self._number(table, place, "share", above=0, most=1))

    def _daily(self, table: dict[str, Any], place: str) -> Daily:
        names = [f.name for f in dataclasses.fields(Daily)]
        self._check_names(table, place, {*names})
        try:
            return Daily(*(self._number(table, place, name) for name in names))
        except errors.ConfigError as e:
            raise errors.ConfigError(f"{self._path}, {place}: {e}") from e

    def _number(
        self,
        table: dict[str, Any],
        place: str,
        name: str,
        **limits: float,
    ) -> float:
        """Returns a number with its source: `{ value = ..., source = "..." }`."""
        place = f"{place}, {name}" if place else name
        (value,) = self._sourced(table[name], place, ("value",))
        self._check_range(place, value, **limits)
        return value

    def _estimate(
        self, table: dict[str, Any], place: str, name: str, above: float = -math.inf
    ) -> Estimate:
        """Returns `{ low = ..., mid = ..., high = ..., source = "..." }`."""
        place = f"{place}, {name}"
        low, mid, high = self._sourced(table[name], place, Estimate._fields)
        self._check_range(place, low, least=0, above=above)
        if not low <= mid <= high:
            self._refuse(place, f"{low:g}, {mid:g}, {high:g}", "low <= mid <= high")
        return Estimate(low, mid, high)

    def _sourced(self, found: Any, place: str, names: tuple[str, ...]) -> list[float]:
        if not isinstance(found, dict):
            wanted = ", ".join(f"{name} = ..." for name in names)
            self._refuse(place, repr(found), f'give {{ {wanted}, source = "..." }}')
        self._check_names(found, place, {*names, "source"})
        source = found["source"]
        if not isinstance(source, str) or not source.strip():
            self._refuse(
                place, f"source = {source!r}", 'say where it is from, or "assumption"'
            )
        self._sources[place] = source
        numbers = []
        for name in names:
            value = found[name]
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                self._refuse(f"{place}, {name}", repr(value), "give a finite number")
            numbers.append(float(value))
        return numbers

    def _check_range(
        self,
        place: str,
        value: float,
        *,
        least: float = -math.inf,
        above: float = -math.inf,
        most: float = math.inf,
    ) -> None:
        if not least <= value <= most or not value > above:
            limits = [
                f"{word} {limit:g}"
                for word, limit in (
                    ("at least", least),
                    ("above", above),
                    ("at most", most),
                )
                if math.isfinite(limit)
            ]
            self._refuse(place, f"{value:g}", f"it must be {' and '.join(limits)}")

    def _check_shares(self, of: str, shares: list[float]) -> None:
        if not shares:
            self._refuse(of, "missing", f"describe at least one {of}")
        if abs(sum(shares) - 1) > _SLACK:
            self._refuse(
                f"{of}, share", f"in sum {sum(shares):g}", "shares must sum to 1"
            )

    def _check_names(
        self,
        table: Any,
        place: str,
        needed: set[str],
        optional: set[str] | None = None,
    ) -> None:
        if not isinstance(table, dict):
            self._refuse(place, repr(table), "give a table")
        before = f"{place}, " if place else ""
        for name in sorted(needed - {*table}):
            self._refuse(f"{before}{name}", "missing", "give it a value and a source")
        for name in sorted({*table} - needed - (optional or set())):
            known = ", ".join(sorted(needed | (optional or set())))
            self._refuse(f"{before}{name}", "unknown", f"known: {known}")

    def _refuse(self, place: str, found: str, remedy: str):
        raise errors.ConfigError(f"{self._path}: {place} is {found}; {remedy}.")

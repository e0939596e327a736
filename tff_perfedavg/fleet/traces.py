"""Trace importers: FedScale's pickles, FLASH's JSON, Android's power profiles.

Measurements of others, read from their own files, of which none comes with the toolkit:

- FedScale (Lai et al., ICML 2022, arXiv 2105.11367): `client_behave_trace` and
  `client_device_capacity` in benchmark/dataset/data/device_info of
  github.com/SymbioticLab/FedScale.
- FLASH (Yang et al., WWW 2021, arXiv 2006.06983): data/state_traces.json of
  github.com/PKU-Chengxu/FLASH.
- AOSP's format of power profiles: source.android.com/docs/core/power/values; a
  phone's own is in its device tree, as core/res/res/xml/power_profile.xml.

A pickle can run any code when it is loaded: those here are read by an unpickler that
knows containers, numbers and text, and refuses the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import pickle
import re
import reprlib
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn
from xml.etree import ElementTree

import numpy as np

from tff_perfedavg import errors, files
from tff_perfedavg.fleet.availability import DAY, HOUR, Windows

# Of a lithium-ion cell, where a power profile gives no voltage.
NOMINAL_VOLTS = 3.7

# More, and one record is no fair sample of the whole, or a clock was wrong.
_MOST_REPEATS = 1_000
# FLASH's devices with shorter records tell nothing of their days.
_LEAST_RECORD_S = HOUR

# The arrays of a trace, as they are kept in its file.
_ARRAYS = {"offsets": np.int64, "starts": np.float64, "ends": np.float64}
# What NumPy and zipfile raise where a file is no archive of arrays, or half of one.
_DAMAGED = (
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)

# What FLASH's states say: of what, and whether it holds.
_IDLE, _CHARGING, _WIFI = "idle", "charging", "wifi"
_FLASH_STATES = {
    "screen_lock": (_IDLE, True),
    "screen_unlock": (_IDLE, False),
    "battery_charged_on": (_CHARGING, True),
    "battery_charged_off": (_CHARGING, False),
    "wifi": (_WIFI, True),
    "2g": (_WIFI, False),
    "3g": (_WIFI, False),
    "4g": (_WIFI, False),
    "5g": (_WIFI, False),
    "unknown": (_WIFI, False),
    "screen_on": None,
    "screen_off": None,
}
_FLASH_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)
_FLASH_EPOCH = datetime.datetime(1970, 1, 1)

# NumPy's scalars that a pickle may hold: whole numbers, fractions, truth values.
_SCALAR = re.compile(r"[iu][1248]|f[248]|b1")


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """An availability trace: windows in which each of some devices was on.

    Devices without a window are kept: to leave them out would make the fleet look more
    available than it was.

    Attributes:
      offsets: int64 `[devices + 1]`: device i has windows offsets[i] to
        offsets[i + 1] - 1.
      starts: float64 `[windows]`, seconds, ascending within a device. Device by device
        windows neither overlap nor touch.
      ends: float64 `[windows]`, seconds; a device is off again at its end.
      period_s: seconds after which the trace begins anew.
      source: where the trace is from.

    Raises:
      DataError: if these are no such windows, or no device has one.
    """

    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    period_s: float
    source: str

    def __post_init__(self):
        for name, dtype in _ARRAYS.items():
            array = np.array(getattr(self, name), dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "period_s", float(self.period_s))
        count = self.starts.size
        if not (
            self.starts.shape == self.ends.shape == (count,)
            and self.offsets.ndim == 1
            and len(self.offsets) > 1
            and self.offsets[0] == 0
            and self.offsets[-1] == count
            and (np.diff(self.offsets) >= 0).all()
            and math.isfinite(self.period_s)
        ):
            raise errors.DataError(
                f"The trace of {self.source} is inconsistent: offsets {self.offsets}, "
                f"starts {list(self.starts.shape)}, ends {list(self.ends.shape)} and a "
                f"period of {self.period_s:g} s do not fit each other; import it again."
            )
        if not count:
            raise errors.DataError(
                f"No device of the trace of {self.source} is ever on; take another."
            )
        self.availability()

    @property
    def num_devices(self) -> int:
        """Number of devices, those without a window included."""
        return len(self.offsets) - 1

    def availability(self) -> Windows:
        """Returns the availability model; user u is device u modulo their number."""
        return Windows(self.offsets, self.starts, self.ends, self.period_s)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the trace atomically as an .npz file."""
        with files.atomic_write(pathlib.Path(path)) as file:
            np.savez(
                file,
                offsets=self.offsets,
                starts=self.starts,
                ends=self.ends,
                period_s=np.float64(self.period_s),
                source=np.str_(self.source),
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Reads what `save` wrote.

        Raises:
          DataError: if the file cannot be read, or is not one of those.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in _ARRAYS}
                period_s, source = found["period_s"], found["source"]
            for name, dtype in _ARRAYS.items():
                if arrays[name].dtype != dtype:
                    raise ValueError(f"{name} is {arrays[name].dtype}, not {dtype}")
            if period_s.shape or source.shape:
                raise ValueError("period_s or source is an array")
            if period_s.dtype != np.float64 or source.dtype.kind != "U":
                raise ValueError("period_s is no number, or source is no text")
            return cls(**arrays, period_s=float(period_s), source=str(source))
        except OSError as e:
            raise _unreadable(path, e) from e
        except _DAMAGED as e:
            raise errors.DataError(
                f"{path} is damaged, or is no saved trace: {e}. Import it again."
            ) from e


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceCapacity:
    """FedScale's compute and network speeds of devices, in its file's order.

    Attributes:
      ms_per_example: float64 `[clients]`: milliseconds of inference per example, of
        whatever model (FedScale's issues #6 and #173). FedScale takes three times as
        much for training.
      kbit_per_s: float64 `[clients]`: kilobits a second on Wi-Fi, down as well as up.
        A kilobit is 1024 bits to FedScale's clock (its issue #9).
      source: where they are from.
    """

    ms_per_example: np.ndarray
    kbit_per_s: np.ndarray
    source: str


@dataclasses.dataclass(frozen=True)
class PowerProfile:
    """A phone's power draw by component, and its battery.

    That of the processor is above idle, those of radios are all they draw. Watts are
    what the profile's milliamperes are at its voltage, if it gives one above 0; at
    3.7 V if not, as always for processor and battery.

    Attributes:
      all_big_cores_watts: all cores of the biggest cluster at full speed: cpu.active
        and its cpu.cluster_power and, for each core, its highest cpu.core_power. The
        biggest cluster is that whose core draws most.
      one_big_core_watts: the same with one core.
      wifi_receive_watts: of Wi-Fi.
      wifi_send_watts: of Wi-Fi.
      wifi_volts: at which these are reckoned.
      modem_receive_watts: of the mobile network.
      modem_send_watts: of the mobile network, by level of the transmitter's power,
        from low (strong signal) to high.
      modem_volts: at which these are reckoned.
      battery_wh: energy of a full battery, in watt-hours.
      source: where they are from.
    """

    all_big_cores_watts: float
    one_big_core_watts: float
    wifi_receive_watts: float
    wifi_send_watts: float
    wifi_volts: float
    modem_receive_watts: float
    modem_send_watts: tuple[float, ...]
    modem_volts: float
    battery_wh: float
    source: str


def read_fedscale_availability(path: str | os.PathLike) -> Trace:
    """Reads FedScale's client availability trace, a pickle.

    It maps each client to seconds: its `active` and `inactive` times, which begin and
    end its windows, its `finish_time`, after which its windows come again, and the
    `duration` of all of them; and to the `model` of its phone. FedScale made it of
    FLASH's records, with a device on while it charges. Its clients are devices in the
    order of the file, as in FedScale.

    The period is the longest finish_time. Windows of a client that finishes sooner
    come again, as in FedScale, until then. They are cut at its finish_time, for later
    times FedScale never asks; empty ones are left out, and touching ones joined. At the
    end of a window, where FedScale has the device on, it is off.

    Args:
      path: of `client_behave_trace`.

    Raises:
      DataError: if the file cannot be read, holds anything but containers, numbers and
        text, or a client's entry is not as above or its windows overlap; naming the
        client.
    """
    path = pathlib.Path(path)
    clients = _Unpickler.read(path)
    records = [
        _fedscale_record(f"{path}: client {_short(client)}", entry)
        for client, entry in _entries(path, clients)
    ]
    period = max(record.length for record in records)
    source = f"FedScale's availability trace {path.name} (arXiv 2105.11367)"
    return _trace(records, period, source)


def read_fedscale_capacity(path: str | os.PathLike) -> DeviceCapacity:
    """Reads FedScale's device capacities, a pickle.

    It maps each client to its `computation`, in milliseconds of inference per example
    (from AI Benchmark), and its `communication`, in kilobits a second (from MobiPerf).

    Args:
      path: of `client_device_capacity`.

    Raises:
      DataError: if the file cannot be read, holds anything but containers, numbers and
        text, or a client's entry is not two positive numbers; naming the client.
    """
    path = pathlib.Path(path)
    names = ("computation", "communication")
    rows = []
    for client, entry in _entries(path, _Unpickler.read(path)):
        place = f"{path}: client {_short(client)}"
        _check_keys(place, entry, names)
        row = [_number(place, name, entry[name]) for name in names]
        if not min(row) > 0:
            _refuse(place, f"computation and communication are {row}", "above 0")
        rows.append(row)
    values = np.array(rows)
    source = f"FedScale's device capacities {path.name} (arXiv 2105.11367)"
    return DeviceCapacity(values[:, 0].copy(), values[:, 1].copy(), source)


def read_flash_availability(path: str | os.PathLike) -> Trace:
    """Reads FLASH's state traces, a JSON file.

    It maps each device to an object whose `messages` are lines "2020-01-28 07:01:02",
    a tab and a state. A device is on while it is idle, charging and on Wi-Fi, where
    FLASH means by idle that its screen is locked, not that it is off. Before the first
    message of a kind it is none of these.

    Times are by the devices' clocks, whose zone is not told, from midnight of the first
    day; the period is in whole days. A device was recorded from its first to its last
    message; before and after, as in FLASH, its record comes again. Unlike FLASH, this
    sorts messages by time, counts a window that is open at the last message, and keeps
    devices that are never on. Devices with lines that cannot be read, which FLASH
    leaves out, and those with less than an hour between messages are left out; the
    source says how many.

    Args:
      path: of `state_traces.json`.

    Raises:
      DataError: if the file cannot be read, a device has no messages or an unknown
        state, or none is left; naming the device.
    """
    path = pathlib.Path(path)
    try:
        devices = json.loads(path.read_bytes())
    except OSError as e:
        raise _unreadable(path, e) from e
    except (ValueError, RecursionError) as e:
        raise errors.DataError(
            f"{path} is no whole JSON file: {e}. Get it anew."
        ) from e
    found = [
        _flash_record(f"{path}: device {_short(device)}", entry)
        for device, entry in _entries(path, devices)
    ]
    records = [record for record in found if record is not None]
    if not records:
        raise errors.DataError(
            f"{path} has no device with an hour of messages that can be read, of "
            f"{len(found)}; get it anew."
        )
    midnight = min(record.first for record in records) // DAY * DAY
    last = max(record.first + record.length for record in records)
    source = f"FLASH's state traces {path.name} (arXiv 2006.06983)"
    if len(records) < len(found):
        source += f", {len(found) - len(records)} of {len(found)} devices left out"
    period = math.ceil((last - midnight) / DAY) * DAY
    return _trace([record.since(midnight) for record in records], period, source)


def read_power_profile(path: str | os.PathLike) -> PowerProfile:
    """Reads an Android power profile, an XML file of AOSP's format.

    Needed are the single numbers cpu.active, cpu.cluster_power.clusterN,
    wifi.controller.rx and .tx, modem.controller.rx and battery.capacity, and the arrays
    cpu.clusters.cores, cpu.core_power.clusterN and modem.controller.tx; used if given
    are wifi.controller.voltage and modem.controller.voltage. These are in milliamperes,
    milliampere-hours and millivolts.

    Args:
      path: of `power_profile.xml`.

    Raises:
      DataError: if the file cannot be read or has a document type, or an item is
        missing, given twice, or out of range (zero is how AOSP's template says that
        nothing was measured); naming the item.
    """
    profile = _Profile(pathlib.Path(path))
    cores = profile.array("cpu.clusters.cores")
    top_ma = [
        max(profile.array(f"cpu.core_power.cluster{i}")) for i in range(len(cores))
    ]
    big = top_ma.index(max(top_ma))
    # What a phone counts among its cores' is zero here.
    shared_ma = profile.number("cpu.active", may_be_zero=True)
    shared_ma += profile.number(f"cpu.cluster_power.cluster{big}", may_be_zero=True)
    all_ma = shared_ma + cores[big] * top_ma[big]
    wifi_volts = profile.volts("wifi.controller.voltage")
    modem_volts = profile.volts("modem.controller.voltage")
    return PowerProfile(
        all_big_cores_watts=all_ma * NOMINAL_VOLTS / 1000,
        one_big_core_watts=(shared_ma + top_ma[big]) * NOMINAL_VOLTS / 1000,
        wifi_receive_watts=profile.number("wifi.controller.rx") * wifi_volts / 1000,
        wifi_send_watts=profile.number("wifi.controller.tx") * wifi_volts / 1000,
        wifi_volts=wifi_volts,
        modem_receive_watts=profile.number("modem.controller.rx") * modem_volts / 1000,
        modem_send_watts=tuple(
            ma * modem_volts / 1000 for ma in profile.array("modem.controller.tx")
        ),
        modem_volts=modem_volts,
        battery_wh=profile.number("battery.capacity") * NOMINAL_VOLTS / 1000,
        source=f"Android power profile {path}",
    )


class _Record(NamedTuple):
    """Windows in which a device was on while it was recorded.

    Attributes:
      place: the file and the device, for messages.
      windows: float64 `[windows, 2]`: starts and ends, ascending, in seconds.
      first: when the record begins.
      length: seconds from there to its end.
    """

    place: str
    windows: np.ndarray
    first: float
    length: float

    def since(self, origin: float) -> _Record:
        """Returns the record with times counted from another origin."""
        return self._replace(windows=self.windows - origin, first=self.first - origin)

    def repeated(self, period: float) -> np.ndarray:
        """Returns the windows `[windows, 2]` from 0 to a time if it repeats itself."""
        earliest = math.floor(-self.first / self.length)
        latest = math.ceil((period - self.first) / self.length)
        if latest - earliest > _MOST_REPEATS:
            _refuse(
                self.place,
                f"its record is of {self.length:g} s, of a trace of {period:g} s",
                f"at least {period / _MOST_REPEATS:g} s; leave out devices with "
                "shorter records, or with wrong clocks",
            )
        shifts = np.arange(earliest, latest)[:, None, None] * self.length
        times = np.clip((self.windows + shifts).reshape(-1, 2), 0, period)
        times = times[times[:, 0] < times[:, 1]]
        begins = np.ones(len(times), bool)
        begins[1:] = times[1:, 0] > times[:-1, 1]
        finishes = np.ones(len(times), bool)
        finishes[:-1] = begins[1:]
        return np.stack([times[begins, 0], times[finishes, 1]], -1)


def _trace(records: Sequence[_Record], period: float, source: str) -> Trace:
    windows = [record.repeated(period) for record in records]
    offsets = np.cumsum([0, *map(len, windows)])
    joined = np.concatenate(windows)
    return Trace(offsets, joined[:, 0], joined[:, 1], period, source)


def _fedscale_record(place: str, entry: Any) -> _Record:
    _check_keys(
        place, entry, ("active", "inactive", "finish_time"), ("duration", "model")
    )
    if _number(place, "duration", entry.get("duration", 0)) < 0:
        _refuse(place, f"duration is {entry['duration']}", "at least 0")
    length = _number(place, "finish_time", entry["finish_time"])
    if not length > 0:
        _refuse(place, f"finish_time is {length:g}", "above 0")
    starts, ends = (
        _numbers(place, name, entry[name]) for name in ("active", "inactive")
    )
    if len(starts) != len(ends):
        _refuse(
            place,
            f"it has {len(starts)} active and {len(ends)} inactive times",
            "equal",
        )
    for problem, found in (
        ("begins before 0", starts < 0),
        ("ends before it has begun", ends < starts),
        ("overlaps the one before or precedes it", _before(starts, ends)),
    ):
        if found.any():
            window = [starts[found.argmax()], ends[found.argmax()]]
            _refuse(
                place,
                f"its window {window[0]:g} to {window[1]:g} s {problem}",
                "ascending and apart; mend its windows, or leave it out",
            )
    windows = np.minimum(np.stack([starts, ends], -1), length)
    return _Record(place, windows, 0.0, length)


def _before(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns bool `[windows]`: whether each begins before the last one has ended."""
    found = np.zeros(len(starts), bool)
    found[1:] = starts[1:] < ends[:-1]
    return found


def _flash_record(place: str, entry: Any) -> _Record | None:
    """Returns a device's record, in seconds since 1970; None for one of no use."""
    if not isinstance(entry, dict) or not isinstance(entry.get("messages"), str):
        _refuse(place, "it has no text `messages`", "an object with `messages`")
    messages = _flash_messages(place, entry["messages"])
    if not messages:
        return None
    # Of one second the file's order is kept.
    messages.sort(key=lambda message: message[0])
    first, last = messages[0][0], messages[-1][0]
    if last - first < _LEAST_RECORD_S:
        return None
    holds = {_IDLE: False, _CHARGING: False, _WIFI: False}
    windows = []
    begun = None
    for time, state in messages:
        said = _FLASH_STATES.get(state)
        if said:
            holds[said[0]] = said[1]
        is_on = all(holds.values())
        if is_on and begun is None:
            begun = time
        elif not is_on and begun is not None:
            windows.append((begun, time))
            begun = None
    if begun is not None:
        windows.append((begun, last))
    array = np.array(windows, np.float64).reshape(-1, 2)
    return _Record(place, array, first, last - first)


def _flash_messages(place: str, text: str) -> list[tuple[float, str]]:
    """Returns seconds since 1970 and states; none if a line cannot be read."""
    messages = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        time, _, state = (part.strip() for part in line.strip().partition("\t"))
        state = state.lower()
        if not _FLASH_TIME.fullmatch(time) or not state or "\t" in state:
            return []
        try:
            passed = datetime.datetime.fromisoformat(time) - _FLASH_EPOCH
            if state.endswith("%"):
                float(state[:-1])
        except ValueError:
            return []
        if not state.endswith("%") and state not in _FLASH_STATES:
            _refuse(
                place,
                f"its state at {time} is {_short(state)}",
                f"a percentage or one of {', '.join(_FLASH_STATES)}; leave it out",
            )
        messages.append((passed.total_seconds(), state))
    return messages


class _Unpickler(pickle.Unpickler):
    """A restricted unpickler, for data alone.

    It never imports anything. NumPy's scalars, of which FedScale's capacities consist,
    become Python's numbers by functions of our own, each made anew for a pickle: one
    that tampers with them harms itself.
    """

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        super().__init__(file)
        self._path = path

    @classmethod
    def read(cls, path: pathlib.Path) -> Any:
        """Deserializes a pickle.

        Raises:
          DataError: if it cannot be read, or holds something else than data.
        """
        try:
            with path.open("rb") as file:
                return cls(file, path).load()
        except errors.DataError:
            raise
        except OSError as e:
            raise _unreadable(path, e) from e
        # A damaged pickle may have any instruction, which may fail in any way.
        except Exception as e:
            raise errors.DataError(
                f"{path} is no whole pickle: {type(e).__name__}: {e}. Get it anew."
            ) from e

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Returns what makes an object of a pickle, instead of what it names."""
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
            return {"set": set, "frozenset": frozenset}[name]
        if (module, name) == ("numpy", "dtype"):
            return lambda code, *_: _Dtype(code)
        if name == "scalar" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return lambda dtype, content: dtype.number(content)
        raise errors.DataError(
            f"{self._path} names {module}.{name}, which was not run: a trace holds "
            "containers, numbers and text alone. Do not trust the file; get it anew "
            "from its authors."
        )


class _Dtype:
    """A NumPy type of a pickled scalar."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any):
        if not isinstance(code, str) or not _SCALAR.fullmatch(code):
            raise pickle.UnpicklingError(f"{_short(code)} is no type of number")
        self._code = code
        self._order = "|"

    def __setstate__(self, state: Any) -> None:
        # A version, the order of bytes, and what structured types have.
        if state[1] not in ("<", ">", "|"):
            raise pickle.UnpicklingError(f"{_short(state[1])} is no order of bytes")
        self._order = state[1]

    def number(self, content: Any) -> bool | int | float:
        """Returns the number that some bytes mean."""
        (found,) = np.frombuffer(content, self._order + self._code)
        return found.item()


class _Profile:
    """Numbers of a power profile, by name."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as e:
            raise _unreadable(path, e) from e
        except UnicodeDecodeError as e:
            raise errors.DataError(
                f"{path} is not in UTF-8: {e}. Save it as that."
            ) from e
        # Without a document type there are no entities, to expand or to fetch.
        if "<!DOCTYPE" in text:
            raise errors.DataError(
                f"{path} has a document type (<!DOCTYPE), which power profiles have "
                "not and which may define harmful entities; remove it."
            )
        try:
            self._root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as e:
            raise errors.DataError(
                f"{path} is no whole XML file: {e}. Get it anew."
            ) from e

    def number(self, name: str, *, may_be_zero: bool = False) -> float:
        """Returns a single number."""
        found = self._find(name, "item")
        if found is None:
            self._miss(name)
        return self._value(name, found.text, may_be_zero=may_be_zero)

    def array(self, name: str) -> list[float]:
        """Returns the numbers of an array, one at least."""
        found = self._find(name, "array")
        if found is None or not len(found):
            self._miss(name)
        return [self._value(name, child.text) for child in found]

    def volts(self, name: str) -> float:
        """Returns a voltage, in the file in millivolts; if it has none, the nominal."""
        found = self._find(name, "item")
        if found is None:
            return NOMINAL_VOLTS
        millivolts = self._value(name, found.text, may_be_zero=True)
        if not millivolts:
            return NOMINAL_VOLTS
        if not 1_000 <= millivolts <= 20_000:
            _refuse(
                f"{self._path}: {name}",
                f"it is {millivolts:g}",
                "millivolts, from 1000 to 20000",
            )
        return millivolts / 1000

    def _find(self, name: str, tag: str) -> ElementTree.Element | None:
        found = [e for e in self._root.iter() if e.get("name") == name]
        if len(found) > 1:
            _refuse(f"{self._path}: {name}", f"it is given {len(found)} times", "once")
        if found and found[0].tag != tag:
            _refuse(f"{self._path}: {name}", f"it is an {found[0].tag}", f"an {tag}")
        return found[0] if found else None

    def _value(
        self, name: str, text: str | None, *, may_be_zero: bool = False
    ) -> float:
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0 or not (value or may_be_zero):
            _refuse(
                f"{self._path}: {name}",
                f"it is {_short((text or '').strip())}",
                f"a number {'from' if may_be_zero else 'above'} 0 (AOSP's template has "
                "0 for what was not measured); take the profile of a real phone",
            )
        return value

    def _miss(self, name: str) -> NoReturn:
        raise errors.DataError(
            f"{self._path} has no {name}; take the profile of a phone that has, or add "
            "it as measured."
        )


def _entries(path: pathlib.Path, found: Any) -> Iterable[tuple[Any, Any]]:
    """Returns the items of a dict of devices."""
    if not isinstance(found, dict) or not found:
        raise errors.DataError(
            f"{path} holds a {type(found).__name__} of no devices; a dict of devices "
            "is needed: give another file."
        )
    return found.items()


def _check_keys(
    place: str, entry: Any, needed: Collection[str], optional: Collection[str] = ()
) -> None:
    if not isinstance(entry, dict):
        _refuse(place, f"it is {_short(entry)}", "a dict")
    missing = [name for name in needed if name not in entry]
    if missing:
        _refuse(place, f"{', '.join(missing)} is missing", f"{', '.join(needed)}")
    unknown = [_short(key) for key in entry if key not in (*needed, *optional)]
    if unknown:
        known = ", ".join((*needed, *optional))
        _refuse(place, f"{', '.join(unknown)} is unknown", f"one of {known}")


def _number(place: str, name: str, value: Any) -> float:
    """Returns a finite number."""
    # Truth values are numbers to Python.
    if type(value) in (int, float):
        # Whole numbers may be too large for a float.
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    _refuse(place, f"{name} is {_short(value)}", "a finite number")


def _numbers(place: str, name: str, values: Any) -> np.ndarray:
    """Returns finite numbers as float64 `[len(values)]`."""
    if not isinstance(values, list | tuple):
        _refuse(place, f"{name} is {_short(values)}", "a list of numbers")
    return np.array([_number(place, name, value) for value in values], np.float64)


def _refuse(place: str, found: str, needed: str) -> NoReturn:
    raise errors.DataError(f"{place}: {found}; needed: {needed}.")


def _unreadable(path: str | os.PathLike, error: OSError) -> errors.DataError:
    told = error.strerror or error
    return errors.DataError(f"{path} could not be read: {told}; give another path.")


def _short(value: Any) -> str:
    """Returns a value as Python writes it, in few characters."""
    try:
        return reprlib.repr(value)
    except ValueError:
        # Python does not write integers of thousands of digits.
        return f"a {type(value).__name__} of too many digits"

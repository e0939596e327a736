"""Device availability: when each user's device may work.

Pure functions of time, so that answers do not depend on the order of questions. Times
are seconds from the start of the simulation, which is midnight in UTC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.fleet import draws

DAY = 86_400.0
HOUR = 3_600.0
# Windows looked at before one that has not come is taken never to come.
_MOST_WINDOWS = 2_000


class Availability(Protocol):
    """Interface of availability models. All methods take and return arrays `[n]`."""

    def is_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Returns bool: whether each user is on at its time.

        Args:
          users: int `[n]`, users' numbers.
          times: float `[n]`, one for each user, seconds since the simulation's start.
        """

    def off_at(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Returns when users that are on at these times are next off; inf for never.

        Args:
          users: int `[n]`, users' numbers.
          times: float `[n]`, one for each user, seconds since the simulation's start.
        """

    def next_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Returns the first times, these included, at which users are on; or inf.

        Args:
          users: int `[n]`, users' numbers.
          times: float `[n]`, one for each user, seconds since the simulation's start.
        """


class Always:
    """Users who are always on."""

    def is_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.ones(len(users), bool)

    def off_at(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.full(len(users), np.inf)

    def next_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.asarray(times, np.float64)


@dataclasses.dataclass(frozen=True)
class Daily:
    """Diurnal probability of being on, by the user's local hour.

    It swings from `at_peak` to `at_peak / ratio` twelve hours later, as a cosine of its
    logarithm.

    Attributes:
      peak_hour: local hour of the highest chance, from 0 to 24.
      at_peak: that chance.
      ratio: highest over lowest chance.
      window_s: seconds after which it is drawn again whether a user is on.

    Raises:
      ConfigError: if a value is out of range.
    """

    peak_hour: float
    at_peak: float
    ratio: float
    window_s: float

    def __post_init__(self):
        _check(0 <= self.peak_hour < 24, "peak_hour", self.peak_hour, "from 0 to 24")
        _check(0 < self.at_peak <= 1, "at_peak", self.at_peak, "above 0, at most 1")
        _check(self.ratio >= 1, "ratio", self.ratio, "at least 1")
        _check(
            60 <= self.window_s <= DAY, "window_s", self.window_s, "from 60 to 86400"
        )

    def chance(self, hours: np.ndarray) -> np.ndarray:
        """Returns the chance of being on at local hours, `[n]`."""
        swing = (1 - np.cos((hours - self.peak_hour) * (2 * np.pi / 24))) / 2
        return self.at_peak * self.ratio**-swing


class Diurnal:
    """Diurnal availability: random windows, with a chance by the local hour.

    A user's time is cut into windows of equal length, the first of which begins at a
    place of the user's own. Through each it is on or off, with the chance at the local
    hour of the window's middle, independent of others. So the share of users that are
    on follows the chance, and windows side by side join.
    """

    def __init__(
        self, daily: Daily, quarters: np.ndarray, seed: int, condition: int = 0
    ):
        """Takes what draws depend on.

        Args:
          daily: the chance, by local hour.
          quarters: int `[users]`, local time minus UTC, in quarters of an hour.
          seed: the fleet's.
          condition: sets apart what is drawn for several conditions of one user.
        """
        self._daily = daily
        self._quarters = quarters
        self._seed = seed
        self._condition = condition

    def is_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        phases = self._phases(users)
        return self._is_on(users, phases, self._windows(phases, times))

    def off_at(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        return self._first(users, times, wanted=False)

    def next_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.maximum(self._first(users, times, wanted=True), times)

    def _phases(self, users: np.ndarray) -> np.ndarray:
        """Returns the phase offset of users' windows, in seconds."""
        drawn = draws.uniform(self._seed, draws.PHASE, self._condition, users)
        return drawn * self._daily.window_s

    def _windows(self, phases: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.floor((times - phases) / self._daily.window_s).astype(np.int64)

    def _start(self, phases: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """Returns the first times that fall into windows."""
        starts = windows * self._daily.window_s + phases
        # Rounded, a start may fall into the window before, and time would not go on.
        while (before := self._windows(phases, starts) < windows).any():
            starts = np.where(before, np.nextafter(starts, np.inf), starts)
        return starts

    def _is_on(
        self, users: np.ndarray, phases: np.ndarray, windows: np.ndarray
    ) -> np.ndarray:
        middle = (windows + 0.5) * self._daily.window_s + phases
        hours = middle / HOUR + self._quarters[users] / 4
        drawn = draws.uniform(self._seed, draws.WINDOW, self._condition, users, windows)
        return drawn < self._daily.chance(hours)

    def _first(
        self, users: np.ndarray, times: np.ndarray, *, wanted: bool
    ) -> np.ndarray:
        """Returns where the first window begins that is as wanted, from these on."""
        phases = self._phases(users)
        windows = self._windows(phases, times)
        starts = np.full(len(users), np.inf)
        places = np.arange(len(users))
        for further in range(_MOST_WINDOWS):
            here = windows[places] + further
            found = self._is_on(users[places], phases[places], here) == wanted
            at = places[found]
            starts[at] = self._start(phases[at], here[found])
            places = places[~found]
            if not len(places):
                break
        return starts


class Windows:
    """Trace-driven availability: users are on in a trace's windows, over and over."""

    def __init__(
        self,
        offsets: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        period_s: float,
    ):
        """Takes the windows of all traced devices, one device behind the other.

        Args:
          offsets: int `[devices + 1]`: device i has windows offsets[i] to
            offsets[i + 1] - 1. User u is device u modulo the number of devices.
          starts: float64 `[windows]`, seconds, ascending within a device.
          ends: float64 `[windows]`, seconds.
          period_s: after it the trace begins anew.

        Raises:
          DataError: if a window is empty, lies outside of the period, or overlaps or
            touches the next, naming the device; if nobody is ever on.
        """
        self._offsets = np.asarray(offsets, np.int64)
        self._starts = np.asarray(starts, np.float64)
        self._ends = np.asarray(ends, np.float64)
        self._period = float(period_s)
        self._check()
        if not len(self._starts):
            raise errors.DataError("No device of the trace is ever on.")
        # Devices behind each other on one line, so that one search finds all windows.
        device = np.repeat(np.arange(self.num_devices), np.diff(self._offsets))
        self._line = device * (2 * self._period) + self._starts

    @property
    def num_devices(self) -> int:
        """Number of devices in the trace."""
        return len(self._offsets) - 1

    def _check(self) -> None:
        if self.num_devices < 1 or not self._period > 0:
            raise errors.DataError("The trace has no devices, or no length of time.")
        device = np.repeat(np.arange(self.num_devices), np.diff(self._offsets))
        starts, ends = self._starts, self._ends
        # Touching windows are one: between them nobody is off.
        joined = (device[1:] == device[:-1]) & (starts[1:] <= ends[:-1])
        for problem, found in (
            ("a window that ends before it has begun", ~(starts < ends)),
            ("windows that overlap or touch", np.append(joined, False)),
            (
                f"a window outside of 0 to {self._period:g} s",
                (starts < 0) | (ends > self._period),
            ),
        ):
            if found.any():
                raise errors.DataError(
                    f"Device {device[found.argmax()]} of the trace has {problem}; mend "
                    "its windows, or leave it out."
                )

    def is_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        window, passed, _ = self._find(users, times)
        return self._is_within(window, passed)

    def off_at(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        window, passed, begun = self._find(users, times)
        on = self._is_within(window, passed)
        found = np.where(on, begun + self._ends[np.maximum(window, 0)], times)
        # A window that ends with the period goes on where the next period begins on.
        device = users % self.num_devices
        first = np.minimum(self._offsets[device], len(self._starts) - 1)
        last = self._offsets[device + 1] - 1
        whole = (last == first) & (self._starts[first] == 0)
        whole &= self._ends[last] == self._period
        found[on & whole] = np.inf
        wraps = on & ~whole & (found == begun + self._period)
        wraps &= self._starts[first] == 0
        return np.where(wraps, found + self._ends[first], found)

    def next_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        device = users % self.num_devices
        window, passed, begun = self._find(users, times)
        on = self._is_within(window, passed)
        first, stop = self._offsets[device], self._offsets[device + 1]
        following = np.where(window >= 0, window + 1, first)
        starts = np.append(self._starts, 0.0)
        later = np.where(
            following < stop,
            begun + starts[np.minimum(following, len(self._starts))],
            begun + self._period + starts[np.minimum(first, len(self._starts))],
        )
        found = np.where(on, times, later)
        return np.where(first == stop, np.inf, found)

    def _is_within(self, window: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """Returns whether each time lies in the last window begun before it."""
        return (window >= 0) & (passed < self._ends[np.maximum(window, 0)])

    def _find(
        self, users: np.ndarray, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns where each user is in the trace.

        Returns:
          The last window begun (-1: none in this period), the time in the period, and
          when the period began.
        """
        device = users % self.num_devices
        begun = np.floor(np.asarray(times) / self._period) * self._period
        passed = times - begun
        at = np.searchsorted(
            self._line, device * (2 * self._period) + passed, side="right"
        )
        window = np.where(at > self._offsets[device], at - 1, -1)
        return window, passed, begun


class AllOf:
    """Conjunction of availability models: users are on where all conditions hold."""

    def __init__(self, parts: Sequence[Availability]):
        self._parts = tuple(parts)

    def is_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        places = np.arange(len(users))
        for part in self._parts:
            places = places[part.is_on(users[places], times[places])]
        found = np.zeros(len(users), bool)
        found[places] = True
        return found

    def off_at(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.minimum.reduce(
            [np.full(len(users), np.inf)]
            + [p.off_at(users, times) for p in self._parts]
        )

    def next_on(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        found = np.array(times, np.float64)
        places = np.arange(len(users))
        for _ in range(_MOST_WINDOWS):
            here = found[places]
            later = np.maximum.reduce(
                [here] + [p.next_on(users[places], here) for p in self._parts]
            )
            found[places] = later
            places = places[(later > here) & np.isfinite(later)]
            if not len(places):
                return found
        found[places] = np.inf
        return found


def _check(holds: bool, field: str, value: float, needed: str) -> None:
    if not holds:
        raise errors.ConfigError(f"{field} is {value:g}; it must be {needed}.")

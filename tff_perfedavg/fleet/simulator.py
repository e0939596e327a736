"""The simulator of synchronous rounds: devices chosen, tasks timed, reports taken.

Each round is worked out in whole arrays over its devices; what outlasts a round
(devices that still work on a late task, energy spent today) is the simulator's state,
from which a run goes on to the same bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.fleet import draws
from tff_perfedavg.fleet import schedule as of
from tff_perfedavg.fleet.availability import DAY, Availability
from tff_perfedavg.fleet.cohort import sample_cohort
from tff_perfedavg.fleet.cost import Costs, Phases, Work
from tff_perfedavg.fleet.fleet import Fleet
from tff_perfedavg.fleet.names import ABORT, PARTIAL
from tff_perfedavg.fleet.protocol import SyncRound
from tff_perfedavg.fleet.schedule import ServerStep

# The server looks again for devices after so long, and gives up after so long.
_LOOK_AGAIN_S = 60.0
_MOST_WAIT_S = 7 * DAY
# A round that is abandoned so often in a row will be for ever.
_MOST_ATTEMPTS = 50
_CHECKED_AT_ONCE = 10_000
_LEAST_CHUNK = 64


class Simulator:
    """A simulator of a fleet under a protocol.

    Attributes:
      clock_s: seconds since the start of the simulation, which is midnight in UTC.
    """

    def __init__(
        self, fleet: Fleet, protocol: SyncRound, work: Work, users: np.ndarray
    ):
        """Starts at time 0.

        Args:
          fleet: the devices.
          protocol: how devices are chosen and waited for.
          work: what a task costs.
          users: int `[n]`, numbers of the users that may be chosen.

        Raises:
          ConfigError: if a round asks for more devices than there are, or nobody can
            meet its deadline.
        """
        self.clock_s = 0.0
        self._fleet = fleet
        self._protocol = protocol
        self._users = np.asarray(users)
        self._costs = Costs(fleet.spec, work)
        self._available: Availability = fleet.availability(protocol.needs)
        self._busy = np.empty([0], np.int64)
        self._busy_until = np.empty([0], np.float64)
        self._day = 0
        # Middle joules that users' tasks took today, of those who had any.
        self._spent: dict[int, float] = {}
        self._capacity = 3600 * np.array([d.battery_wh.mid for d in fleet.spec.devices])
        if protocol.num_selected > len(self._users):
            raise errors.ConfigError(
                f"A round chooses {protocol.num_selected} devices "
                f"(SyncRound.goal {protocol.goal}, SyncRound.over_selection "
                f"{protocol.over_selection:g}), but there are only "
                f"{len(self._users)} users; lower SyncRound.goal."
            )
        self._check_deadline()

    def _check_deadline(self) -> None:
        partial = self._protocol.late == PARTIAL
        steps = 1 if partial else self._costs.work.steps
        fastest = math.inf
        # Of a large fleet the first few as a rule have one who can.
        for first in range(0, len(self._users), _CHECKED_AT_ONCE):
            records = self._fleet.records[self._users[first:][:_CHECKED_AT_ONCE]]
            phases = self._costs.phases(records, np.zeros(len(records), bool))
            training = phases.fixed_s + steps * phases.step_s
            takes = phases.down_s + training + phases.up_s
            fastest = min(fastest, takes.min())
            if fastest <= self._protocol.deadline_s:
                return
        raise errors.ConfigError(
            f"SyncRound.deadline_s is {self._protocol.deadline_s:g}, which nobody can "
            f"meet: the fastest device takes {fastest:.3g} s for {steps} steps and its "
            "links. Give a later one, or less work."
        )

    def state(self) -> dict[str, Any]:
        """Returns the state, all that the next round depends on, as JSON."""
        return {
            "clock_s": self.clock_s,
            "busy": self._busy.tolist(),
            "busy_until": self._busy_until.tolist(),
            "day": self._day,
            "spent": [[*self._spent], [*self._spent.values()]],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state that `state` returned."""
        self.clock_s = state["clock_s"]
        self._busy = np.array(state["busy"], np.int64)
        self._busy_until = np.array(state["busy_until"], np.float64)
        self._day = state["day"]
        self._spent = dict(zip(*state["spent"], strict=True))

    def next_round(self, number: int) -> list[ServerStep]:
        """Simulates a round, with retries until one attempt is not abandoned.

        Args:
          number: of the round, from 0.

        Returns:
          The attempts; the last is taken.

        Raises:
          ConfigError: if there are never enough devices, or the round is abandoned
            again and again.
        """
        attempts: list[ServerStep] = []
        while len(attempts) < _MOST_ATTEMPTS:
            attempts.append(self._attempt(number, len(attempts)))
            if attempts[-1].is_taken:
                return attempts
        reports = max(
            np.count_nonzero(a.tasks["outcome"] == of.ABANDONED) for a in attempts
        )
        raise errors.ConfigError(
            f"Round {number} was abandoned {_MOST_ATTEMPTS} times in a row: it needs "
            f"{self._protocol.fewest_reports} reports, and never had more than "
            f"{reports}. Choose more devices (SyncRound.over_selection), wait longer "
            "(SyncRound.deadline_s) or take fewer reports (SyncRound.min_reports)."
        )

    def _attempt(self, number: int, attempt: int) -> ServerStep:
        asked = self.clock_s
        users = self._select(number, attempt)
        begin = self.clock_s
        tasks = np.zeros([len(users)], of.TASK)
        tasks["step"], tasks["attempt"], tasks["user"] = number, attempt, users
        tasks["device"] = self._fleet.records["device"][users]
        tasks["begin_s"] = begin
        tasks["bytes_down"] = self._costs.work.bytes_down
        times = np.full(len(users), begin)
        phases = self._costs.phases(
            self._fleet.records[users], self._fleet.is_mobile(users, times)
        )
        timing = self._time(tasks, phases, (number, attempt))
        close, is_taken, cause = self._close(tasks, timing, begin)
        self._refuse_uploads(tasks, timing, close, cause)
        seconds = np.stack([tasks[f"{p}_s"] for p in ("down", "compute", "up")], 1)
        tasks["joules"] = phases.joules(seconds)
        self._remember(tasks, close)
        self.clock_s = close + self._protocol.interval_s
        return ServerStep(number, attempt, begin - asked, begin, close, is_taken, tasks)

    # Choosing.

    def _select(self, number: int, attempt: int) -> np.ndarray:
        """Waits until enough devices are on, and returns those chosen."""
        wanted, most = self._protocol.num_selected, 0
        asked = self.clock_s
        while self.clock_s - asked <= _MOST_WAIT_S:
            found = self._look(number, attempt, wanted)
            if len(found) == wanted:
                return found
            most = max(most, len(found))
            # Looks before so many can be on would find nothing new.
            enough_at = min(self._earliest(wanted), asked + _MOST_WAIT_S)
            self.clock_s += _LOOK_AGAIN_S
            while self.clock_s < enough_at:
                self.clock_s += _LOOK_AGAIN_S
        raise errors.ConfigError(
            f"Round {number} needs {wanted} devices at once, and in "
            f"{_MOST_WAIT_S / 3600:g} hours so many of {len(self._users)} were never "
            f"on and free (at most {most}, when the server looked). Choose fewer a "
            "round, ask for fewer conditions (SyncRound.needs), or take a larger fleet."
        )

    def _earliest(self, wanted: int) -> float:
        """Returns a time before which fewer than so many users have been on."""
        comes = []
        for first in range(0, len(self._users), _CHECKED_AT_ONCE):
            users = self._users[first:][:_CHECKED_AT_ONCE]
            now = np.full(len(users), self.clock_s)
            # For who is on, it is now.
            comes.append(self._available.next_on(users, now))
        return float(np.partition(np.concatenate(comes), wanted - 1)[wanted - 1])

    def _look(self, number: int, attempt: int, wanted: int) -> np.ndarray:
        """Returns up to so many of the users that are on now, at random."""
        seed = self._fleet.seed
        # Where all are on, this is the cohort that a run without a fleet draws.
        drawn = np.empty([0], np.int64)
        if attempt == 0:
            drawn = sample_cohort(self._users, wanted, seed, number)
        chosen = [self._free(drawn)]
        place, missing = 0, wanted - len(chosen[0])
        rate = max(len(chosen[0]) / max(wanted, 1), 0.01)
        while missing > 0 and place < len(self._users):
            chunk = min(
                max(math.ceil(1.2 * missing / rate), _LEAST_CHUNK),
                len(self._users) - place,
            )
            order = draws.walk(
                seed, (number, attempt), len(self._users), place + np.arange(chunk)
            )
            others = self._users[order]
            found = self._free(others[~_is_among(others, drawn)])[:missing]
            rate = max(len(found) / chunk, rate / 10, 1e-4)
            chosen.append(found)
            place, missing = place + chunk, missing - len(found)
        return np.concatenate(chosen)

    def _free(self, users: np.ndarray) -> np.ndarray:
        """Returns those that are on, at work on nothing, and not short of energy."""
        now = np.full(len(users), self.clock_s)
        busy = self._busy[self._busy_until > self.clock_s]
        free = self._available.is_on(users, now) & ~_is_among(users, busy)
        if self._protocol.most_battery < 1:
            spent = self._spent if self._day == self.clock_s // DAY else {}
            taken = np.array([spent.get(user, 0.0) for user in users.tolist()])
            device = self._fleet.records["device"][users]
            free &= taken < self._protocol.most_battery * self._capacity[device]
        return users[free]

    # Timing.

    def _time(self, tasks: np.ndarray, phases: Phases, key: tuple[int, int]) -> _Timing:
        """Fills in steps, seconds and ends as if nobody stopped waiting."""
        steps = self._steps(phases)
        # Who can do no step waits for nothing.
        idle = steps == 0
        planned = np.stack(
            [
                phases.down_s,
                np.where(idle, 0, phases.fixed_s + steps * phases.step_s),
                np.where(idle, 0, phases.up_s),
            ],
            1,
        )
        users, begin = tasks["user"], tasks["begin_s"]
        total = planned.sum(1)
        rate = self._fleet.spec.drop_outs_per_hour / 3600
        lasts = np.full(len(tasks), np.inf)
        if rate:
            seed = self._fleet.seed
            lasts = draws.exponential(seed, draws.DROP_OUT, *key, users) / rate
        cause = np.where(lasts < total, of.DROPPED_OUT, of.NO_CAUSE)
        if self._protocol.leaving == ABORT:
            on_for = self._available.off_at(users, begin) - begin
            cause[(on_for < total) & (on_for < lasts)] = of.WENT_OFF
            worked = np.minimum(total, np.minimum(lasts, on_for))
            ends = begin + worked
        else:
            worked = np.minimum(total, lasts)
            ends = self._when_worked(users, begin, worked)
            # Off for ever: as good as gone.
            gone = np.isinf(ends)
            cause[gone], ends[gone] = of.WENT_OFF, begin[gone] + worked[gone]
        before = np.cumsum(planned, 1) - planned
        spent = np.clip(worked[:, None] - before, 0, planned)
        sends = ends - spent[:, 2]
        if self._protocol.leaving != ABORT:
            # An upload that pauses began earlier.
            sends = self._when_worked(users, begin, before[:, 2])
        for place, phase in enumerate(("down", "compute", "up")):
            tasks[f"{phase}_s"] = spent[:, place]
        tasks["end_s"], tasks["cause"] = ends, cause
        done = np.floor(
            np.maximum(spent[:, 1] - phases.fixed_s, 0) / phases.step_s + 1e-9
        )
        tasks["steps"] = np.where(cause == of.NO_CAUSE, steps, np.minimum(done, steps))
        reports = (cause == of.NO_CAUSE) & ~idle
        return _Timing(
            reports=np.where(reports, ends, np.inf),
            sends=np.where((spent[:, 2] > 0) & np.isfinite(sends), sends, -np.inf),
            idle=idle,
        )

    def _steps(self, phases: Phases) -> np.ndarray:
        """Returns the local steps that each device sets out to do, `[n]`."""
        most = self._costs.work.steps
        if self._protocol.late != PARTIAL:
            return np.full(len(phases.down_s), most)
        left = self._protocol.deadline_s - phases.down_s - phases.fixed_s - phases.up_s
        return np.clip(np.floor(left / phases.step_s + 1e-9), 0, most).astype(int)

    def _when_worked(
        self, users: np.ndarray, begin: np.ndarray, worked: np.ndarray
    ) -> np.ndarray:
        """Returns when devices that pause while they are off have worked so long."""
        now, left = begin.copy(), worked.copy()
        ends = np.full(len(users), np.inf)
        places = np.arange(len(users))
        while len(places):
            off = self._available.off_at(users[places], now[places])
            on_for = off - now[places]
            done = left[places] <= on_for
            at = places[done]
            ends[at] = now[at] + left[at]
            left[places[~done]] -= on_for[~done]
            places, off = places[~done], off[~done]
            # Later than `off` in any case, or a rounded trace would stop the clock.
            now[places] = np.maximum(
                self._available.next_on(users[places], off), np.nextafter(off, np.inf)
            )
            places = places[np.isfinite(now[places])]
        return ends

    # Reports.

    def _close(
        self, tasks: np.ndarray, timing: _Timing, begin: float
    ) -> tuple[float, bool, int]:
        """Takes reports.

        Returns:
          When the waiting ends, whether the reports are enough, and the cause of
          others' being late.
        """
        goal, deadline = self._protocol.goal, begin + self._protocol.deadline_s
        in_time = (timing.reports <= deadline) & np.isfinite(timing.reports)
        by_time = np.argsort(timing.reports, kind="stable")
        if np.count_nonzero(in_time) >= goal:
            taken = by_time[:goal]
            close, cause = float(timing.reports[taken[-1]]), of.AFTER_GOAL
        else:
            taken = by_time[: np.count_nonzero(in_time)]
            # Where nobody is left, there is nothing to wait for.
            close = float(min(deadline, tasks["end_s"].max()))
            cause = of.AFTER_DEADLINE
        is_taken = len(taken) >= self._protocol.fewest_reports
        tasks["outcome"] = np.where(tasks["cause"] == of.NO_CAUSE, of.LATE, of.DROPPED)
        tasks["outcome"][taken] = of.TAKEN if is_taken else of.ABANDONED
        tasks["cause"][tasks["outcome"] == of.LATE] = cause
        tasks["cause"][timing.idle & (tasks["outcome"] == of.LATE)] = of.AFTER_DEADLINE
        return close, is_taken, cause

    def _refuse_uploads(
        self, tasks: np.ndarray, timing: _Timing, close: float, cause: int
    ) -> None:
        """Devices that would begin to send after the end are told not to.

        They are late, whatever had become of them while they sent.
        """
        refused = np.isin(tasks["outcome"], (of.LATE, of.DROPPED))
        refused &= timing.sends >= close
        tasks["outcome"][refused] = of.LATE
        tasks["cause"][refused] = cause
        tasks["end_s"][refused] = timing.sends[refused]
        tasks["up_s"][refused] = 0
        sent = np.isfinite(timing.reports) & ~refused
        tasks["bytes_up"] = np.where(sent, self._costs.work.bytes_up, 0)

    def _remember(self, tasks: np.ndarray, close: float) -> None:
        """Updates busy devices and daily energy use."""
        still = self._busy_until > close
        later = tasks["end_s"] > close
        self._busy = np.concatenate([self._busy[still], tasks["user"][later]])
        self._busy_until = np.concatenate(
            [self._busy_until[still], tasks["end_s"][later]]
        )
        if self._protocol.most_battery == 1:
            return
        today = int(tasks["begin_s"][0] // DAY)
        if today != self._day:
            self._day, self._spent = today, {}
        for user, joules in zip(
            tasks["user"].tolist(), tasks["joules"][:, 1].tolist(), strict=True
        ):
            self._spent[user] = self._spent.get(user, 0.0) + joules


def _is_among(users: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns which users are among others; for few, faster than `np.isin`."""
    if not len(others):
        return np.zeros(len(users), bool)
    ordered = np.sort(others)
    places = np.searchsorted(ordered, users)
    return ordered[np.minimum(places, len(ordered) - 1)] == users


class _Timing(NamedTuple):
    """Times of devices if nobody stopped waiting; all arrays `[n]`.

    Attributes:
      reports: when each one's report is there; inf for never.
      sends: when each begins to send it; -inf for never.
      idle: which can do no step.
    """

    reports: np.ndarray
    sends: np.ndarray
    idle: np.ndarray

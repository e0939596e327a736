"""Protocols: how the server chooses devices, and how long it waits for them.

Synchronous rounds after Bonawitz et al., 2019, "Towards federated learning at scale:
system design" (arXiv 1902.01046). What a protocol decides is told by a schedule
(`schedule.ServerStep`), whose tasks have room for the lag and the draw of buffered,
asynchronous rounds.
"""

from __future__ import annotations

import dataclasses
import math

from tff_perfedavg import errors
from tff_perfedavg.fleet.names import (
    ABORT,
    CONDITIONS,
    DROP,
    LATE_REPORTS,
    LEAVING,
    PARTIAL,
)


@dataclasses.dataclass(frozen=True)
class SyncRound:
    """Protocol of synchronous rounds: over-selection, goal of reports, deadline.

    The server chooses `num_selected` devices that are on, and takes the first `goal`
    reports. It stops waiting at the deadline; then `min_reports` are enough, and with
    fewer the round is abandoned: time has passed, and the model is what it was.

    Attributes:
      goal: reports that a round takes at most.
      over_selection: devices chosen over `goal`.
      deadline_s: seconds after which the server waits no longer; inf for never.
      min_reports: without which a round is abandoned; None for `goal`.
      late: `drop`: devices do all of their steps, and come late; `partial`: devices do
        as many of them as leave time for their upload before the deadline.
      leaving: `abort`: a device that goes off in the middle gives up its task; `pause`:
        it goes on when it is on again.
      needs: conditions that hold where a device is on, of `names.CONDITIONS`.
      most_battery: share of a full battery that tasks of one day may take of a device,
        by the middle estimate; 1 for no limit.
      interval_s: seconds from a round's end to the selection of the next.
    """

    goal: int
    over_selection: float = 1.0
    deadline_s: float = math.inf
    min_reports: int | None = None
    late: str = DROP
    leaving: str = ABORT
    needs: tuple[str, ...] = ()
    most_battery: float = 1.0
    interval_s: float = 0.0

    def __post_init__(self):
        self._check("goal", self.goal >= 1, "at least 1")
        self._check(
            "over_selection",
            1 <= self.over_selection < math.inf,
            "at least 1: how many devices are chosen for each report",
        )
        self._check("deadline_s", self.deadline_s > 0, "above 0")
        self._check("most_battery", 0 < self.most_battery <= 1, "above 0, at most 1")
        self._check("interval_s", 0 <= self.interval_s < math.inf, "0 or more")
        if self.min_reports is not None:
            self._check(
                "min_reports",
                1 <= self.min_reports <= self.goal,
                f"from 1 to SyncRound.goal, {self.goal}",
            )
        errors.check_known("SyncRound.late", self.late, LATE_REPORTS)
        errors.check_known("SyncRound.leaving", self.leaving, LEAVING)
        for need in self.needs:
            errors.check_known("SyncRound.needs", need, CONDITIONS)
        if self.late == PARTIAL and math.isinf(self.deadline_s):
            raise errors.ConfigError(
                "SyncRound.late is 'partial', but there is no deadline to be done "
                "before; give SyncRound.deadline_s."
            )

    @property
    def num_selected(self) -> int:
        """Devices chosen for a round."""
        # Rounded first: 1.1 * 100 is above 110.
        return math.ceil(round(self.goal * self.over_selection, 6))

    @property
    def fewest_reports(self) -> int:
        """Reports without which a round is abandoned."""
        return self.goal if self.min_reports is None else self.min_reports

    def _check(self, field: str, holds: bool, needed: str) -> None:
        if not holds:
            raise errors.ConfigError(
                f"SyncRound.{field} is {getattr(self, field)!r}; it must be {needed}."
            )

"""A fleet: its users' devices, and when these are on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tff_perfedavg.fleet import draws
from tff_perfedavg.fleet.availability import AllOf, Always, Availability, Diurnal
from tff_perfedavg.fleet.devices import FleetSpec
from tff_perfedavg.fleet.names import CONDITIONS, UNMETERED

# Of so many users the share that is on is told, within half a point.
_MOST_ASKED = 10_000


class Fleet:
    """A fleet of users' devices: their records and availability.

    Attributes:
      spec: the description.
      records: `population.RECORD` `[users]`.
      seed: what all draws are keyed by.
    """

    def __init__(
        self,
        spec: FleetSpec,
        records: np.ndarray,
        seed: int,
        trace: Availability | None = None,
    ):
        """Initializes a fleet from its description and users.

        Args:
          spec: the description.
          records: the users, in memory or mapped.
          seed: what all draws are keyed by.
          trace: windows in which users are on, of a trace; in the place of the
            conditions of the description.
        """
        self.spec = spec
        self.records = records
        self.seed = seed
        self._trace = trace
        self._conditions = {
            name: Diurnal(
                daily, records["quarters"], seed, condition=CONDITIONS.index(name)
            )
            for name, daily in spec.conditions.items()
        }

    def availability(self, needs: Sequence[str]) -> Availability:
        """Returns the availability model of a protocol's conditions.

        Args:
          needs: conditions that must hold, of `names.CONDITIONS`. One that the
            description leaves out always holds, and all of them do within the windows
            of a trace.
        """
        if self._trace is not None:
            return self._trace
        parts = [self._conditions[n] for n in needs if n in self._conditions]
        if not parts:
            return Always()
        return AllOf(parts)

    def is_mobile(self, users: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Returns bool `[n]`: whether each user has the mobile link at its time.

        Args:
          users: int `[n]`, users' numbers.
          times: float `[n]`, one for each user, seconds since the simulation's start.
        """
        if self._trace is not None or UNMETERED not in self._conditions:
            return np.zeros(len(users), bool)
        return ~self._conditions[UNMETERED].is_on(users, times)

    def share_on(self, needs: Sequence[str], times: Sequence[float]) -> np.ndarray:
        """Returns the share of users that are on for a protocol, at each time.

        Args:
          needs: as for `availability`.
          times: seconds since the start of the simulation.
        """
        available = self.availability(needs)
        num_users = len(self.records)
        asked = min(num_users, _MOST_ASKED)
        users = draws.walk(self.seed, (), num_users, np.arange(asked))
        return np.array(
            [available.is_on(users, np.full(asked, time)).mean() for time in times]
        )

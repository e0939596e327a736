"""Wall time of a run, over all processes that worked on it."""

from __future__ import annotations

import time
from typing import Any

from tff_perfedavg.experiments.training.rounds import Callback, Start


class Clock(Callback):
    """Callback that measures wall time, that before the checkpoint included."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before = 0.0

    def begin(self, start: Start) -> None:
        if start.notes is not None:
            self._before = start.notes["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._start

    def notes(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

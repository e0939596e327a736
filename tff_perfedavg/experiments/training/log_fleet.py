"""Callback that logs a fleet's tasks and rounds as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

from tff_perfedavg.experiments.files.fleet_rows import rounds_columns, tasks_columns
from tff_perfedavg.experiments.files.metrics_log import LinesFile
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.training.evaluate import Evaluation
from tff_perfedavg.experiments.training.fleet_rounds import FleetRounds
from tff_perfedavg.experiments.training.rounds import Callback, Start
from tff_perfedavg.experiments.training.simulation import Round
from tff_perfedavg.fleet.schedule import ServerStep

# Columns cost as much for one round as for many.
_ROUNDS_AT_ONCE = 50


class LogFleet(Callback):
    """Callback that logs a fleet's tasks and rounds, and checkpoints its state."""

    def __init__(self, fleet: FleetRounds, paths: RunPaths):
        """Takes the fleet, and where its files are."""
        self._fleet = fleet
        self._paths = {"tasks": paths.fleet_tasks, "rounds": paths.fleet_rounds}
        self._files: dict[str, LinesFile] = {}
        self._has_header = False
        self._unwritten: list[ServerStep] = []
        self._state = fleet.state()

    def begin(self, start: Start) -> None:
        found = {} if start.notes is None else start.notes["fleet"]
        if found:
            self._fleet.restore(found["state"])
            self._state = found["state"]
        positions = found.get("positions", {})
        self._has_header = any(positions.values())
        self._files = {
            name: LinesFile(path, positions.get(name, 0))
            for name, path in self._paths.items()
        }

    def after_round(self, after: Round) -> bool:
        self._unwritten += after.fleet_steps
        if len(self._unwritten) >= _ROUNDS_AT_ONCE:
            self._write()
        # Not when it is asked for: a round that diverges moves the clock, too.
        self._state = self._fleet.state()
        return False

    def add_to(self, evaluation: Evaluation) -> None:
        """Adds what was spent so far to an evaluation's rows."""
        for row in evaluation.rows:
            row.update(self._fleet.spent())

    def notes(self) -> dict[str, Any]:
        self._write()
        positions = {name: file.sync() for name, file in self._files.items()}
        return {
            "fleet": {
                "work": dataclasses.asdict(self._fleet.work),
                "state": self._state,
                "positions": positions,
            }
        }

    def end(self) -> None:
        self._write()
        for file in self._files.values():
            file.close()

    def _write(self) -> None:
        if not self._unwritten:
            return
        for name, columns in (
            ("tasks", tasks_columns(self._unwritten, self._fleet.classes)),
            ("rounds", rounds_columns(self._unwritten)),
        ):
            # A table of pandas takes ten times as long.
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if not self._has_header:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
            self._files[name].write(text.getvalue().rstrip("\n"))
        self._has_header, self._unwritten = True, []

"""Callback that logs metrics as CSV, as JSON lines and for TensorBoard."""

from __future__ import annotations

from typing import Any

from tff_perfedavg.experiments.files.metrics_log import MetricsLog
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.training.evaluate import Evaluation
from tff_perfedavg.experiments.training.rounds import Callback, Start
from tff_perfedavg.experiments.training.simulation import Round


class LogMetrics(Callback):
    """Callback that logs rounds and evaluations, from where the checkpoint left off."""

    _log: MetricsLog

    def __init__(self, paths: RunPaths):
        self._files = {
            MetricsLog.ROUNDS: paths.metrics,
            MetricsLog.EVALUATIONS: paths.evaluations,
            MetricsLog.EVENTS: paths.events,
        }
        self._tensorboard = paths.logdir

    def begin(self, start: Start) -> None:
        positions = {} if start.notes is None else start.notes["positions"]
        self._log = MetricsLog(self._files, self._tensorboard, positions)

    def after_round(self, after: Round) -> bool:
        self._log.add_round(after.done - 1, after.metrics)
        return False

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Adds an evaluation of the users."""
        self._log.add_evaluation(evaluation.done, evaluation.rows)

    def notes(self) -> dict[str, Any]:
        return {"positions": self._log.sync()}

    def end(self) -> None:
        self._log.close()

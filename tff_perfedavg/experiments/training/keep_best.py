"""Callback that keeps the model of the best evaluation."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.evaluation.metrics import NEW
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.training.evaluate import Evaluation
from tff_perfedavg.experiments.training.rounds import Callback, Start
from tff_perfedavg.experiments.training.run_identity import RunIdentity


class KeepBest(Callback):
    """Callback that saves the model whenever an evaluation is the best so far."""

    def __init__(self, metric: str, path: pathlib.Path, identity: RunIdentity):
        """Begins with no evaluation.

        Args:
          metric: `GROUP/QUANTITY/STEP`, as in `TrainingOptions`; '' keeps nothing.
          path: of the model.
          identity: of the run.
        """
        self._metric = metric
        self._path = path
        self._identity = identity
        # The larger the better.
        self._best: float | None = None

    def begin(self, start: Start) -> None:
        # What was best by another metric says nothing of this one.
        if start.notes is not None and start.notes["best_metric"] == self._metric:
            self._best = start.notes["best"]

    def look(self, evaluation: Evaluation) -> None:
        """Keeps an evaluation's model if it is the best so far."""
        if not self._metric:
            return
        group, quantity, step = self._metric.split("/")
        # None, where no user of the group has evaluation rows.
        for row in evaluation.rows:
            if row["users"] != group or row["step"] != int(step):
                continue
            merit = row[quantity] if quantity == "accuracy" else -row[quantity]
            if math.isfinite(merit) and (self._best is None or merit > self._best):
                self._best = merit
                self._save(evaluation)

    def notes(self) -> dict[str, Any]:
        return {"best": self._best, "best_metric": self._metric}

    def _save(self, evaluation: Evaluation) -> None:
        identity = self._identity
        trained_model.save(
            self._path, evaluation.weights, identity.experiment, identity.sources
        )


def check_best_metric(metric: str, population: UserStore) -> None:
    """Raises `ConfigError` unless a metric can be measured on the users of a store.

    Args:
      metric: as for `KeepBest`.
      population: the users.
    """
    group, _, quantity = metric.partition("/")
    if group == NEW and not len(population.new_users):
        raise errors.ConfigError(
            f"best_metric is {metric!r}, but {population.path} "
            "has no new users; take seen/..."
        )
    has_classes = population.description.num_classes is not None
    if quantity.startswith("accuracy") and not has_classes:
        raise errors.ConfigError(
            f"best_metric is {metric!r}, but the labels of "
            f"{population.path} are no classes; take {group}/loss/..."
        )

"""Callback that keeps the last finite model when a run diverges."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.training.rounds import Callback
from tff_perfedavg.experiments.training.run_identity import RunIdentity
from tff_perfedavg.files import atomic_write


class KeepLastGood(Callback):
    """Callback that records that a run diverged, and saves the last finite model."""

    def __init__(
        self,
        paths: RunPaths,
        identity: RunIdentity,
        weights: Callable[[Any], list[np.ndarray]],
    ):
        """Takes what to keep and where.

        Args:
          paths: where the run's files are.
          identity: of the run.
          weights: gives the initial model of a state.
        """
        self._paths = paths
        self._identity = identity
        self._weights = weights

    def diverged(self, done: int, state: Any, error: errors.Diverged) -> str:
        experiment = self._identity.experiment
        facts = {
            "round_num": done,
            "message": str(error),
            "experiment": experiment.flat(),
        }
        with atomic_write(self._paths.diverged) as file:
            file.write(json.dumps(facts, indent=1).encode())
        if not done:
            return "There is no round before it whose model could be kept."
        # It is what a run of so many rounds ends with.
        shorter = experiment.replace(total_rounds=done)
        trained_model.save(
            self._paths.model, self._weights(state), shorter, self._identity.sources
        )
        return (
            f"{self._paths.model} is the model after {done} of "
            f"{experiment.total_rounds} rounds, the last whose weights are finite."
        )

"""Callback that evaluates users during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tff_perfedavg.experiments.evaluation.evaluate_users import (
    build_evaluator,
    choose_users,
)
from tff_perfedavg.experiments.evaluation.metrics import mean_rows
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.experiments.training.rounds import Callback, Start
from tff_perfedavg.experiments.training.simulation import Round, Simulation


class Evaluation(NamedTuple):
    """The result of an evaluation during training.

    Attributes:
      done: rounds of training done.
      weights: the initial model after them.
      rows: as `mean_rows` gives them, by group of users and adaptation step.
    """

    done: int
    weights: list[np.ndarray]
    rows: list[dict[str, Any]]


class Evaluate(Callback):
    """Callback that evaluates users before training, periodically, and at its end."""

    def __init__(
        self,
        simulation: Simulation,
        experiment: Experiment,
        options: TrainingOptions,
        observers: Sequence[Callable[[Evaluation], None]],
    ):
        """Builds the evaluation.

        Args:
          simulation: whose users and models are measured.
          experiment: says how users adapt, and the seed of all draws.
          options: tell when, how many users, and after how many steps.
          observers: called in their order with every evaluation.
        """
        seed = experiment.base_random_seed
        population = simulation.population
        self._weights = simulation.weights
        self._every = options.rounds_per_evaluation
        self._observers = observers
        self._evaluate = build_evaluator(
            simulation.model,
            population,
            dataclasses.replace(
                experiment.local.adaptation, num_steps=options.adaptation_steps
            ),
            groups=choose_users(population, options.num_evaluation_users, seed),
            seed=seed,
        )

    def begin(self, start: Start) -> None:
        if start.notes is None:
            self._measure(start.done, start.state)

    def after_round(self, after: Round) -> bool:
        if after.is_last or after.done % self._every == 0:
            self._measure(after.done, after.state)
        return False

    def _measure(self, done: int, state: Any) -> None:
        weights = self._weights(state)
        evaluation = Evaluation(done, weights, mean_rows(self._evaluate(weights)))
        for observe in self._observers:
            observe(evaluation)

"""Comparison of methods on the same users and seeds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tff_perfedavg.algorithms.registry import BASELINE, paper_methods
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.build import build_model
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.baseline_names import has_own_labels
from tff_perfedavg.experiments.evaluation.baselines import evaluate_baselines
from tff_perfedavg.experiments.evaluation.evaluate_users import Draws, evaluate_users
from tff_perfedavg.experiments.evaluation.local_training import (
    evaluate_local_training,
)
from tff_perfedavg.experiments.evaluation.nearest_rows import evaluate_nearest
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.training.training import train
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import AdaptationConfig


def compare(
    base: Experiment,
    seeds: Sequence[int],
    adaptation_steps: int,
    root: pathlib.Path,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trains and evaluates methods on every seed.

    The methods share what a seed decides: partition, initial weights, cohorts
    and batches.

    Args:
      base: the settings all runs share; algorithm, variant and seed are replaced.
      seeds: one run per method and seed.
      adaptation_steps: m; every user adapts by full-batch steps at the run's inner
        learning rate.
      root: directory under which the users' stores are kept.
      methods: by name, the settings of each in the place of the base's; by default
        those of the paper.

    Returns:
      The rows of `evaluate_users` of every run, and, of every seed, those of
      `evaluate_baselines` with FedAvg's model, of `evaluate_nearest` likewise where
      labels are users' own, and of `evaluate_local_training`, all with `algorithm` and
      `seed`.
    """
    frames, baselines = [], []
    for method, settings in (methods or paper_methods()).items():
        for seed in seeds:
            experiment = base.replace(**settings, base_random_seed=seed)
            adaptation = dataclasses.replace(
                experiment.local.adaptation, num_steps=adaptation_steps
            )
            population = build_population(experiment, root)
            result = train(experiment, population)
            model = build_model(experiment, population)
            frame = evaluate_users(
                model, result.weights, population, adaptation, seed=seed
            )
            frame.insert(0, "seed", seed)
            frame.insert(0, "algorithm", experiment.label)
            frames.append(frame)
            if method == BASELINE:
                found = _baselines(
                    experiment, model, result.weights, population, adaptation
                )
                baselines += [frame.assign(seed=seed) for frame in found]
    return (
        pd.concat(frames, ignore_index=True),
        pd.concat(baselines, ignore_index=True),
    )


def _baselines(
    experiment: Experiment,
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    adaptation: AdaptationConfig,
) -> list[pd.DataFrame]:
    """Returns the rows of the baselines beside one run's model."""
    label, seed = experiment.label, experiment.base_random_seed
    found = [evaluate_baselines(model, weights, population, label)]
    if has_own_labels(population):
        draws = Draws(seed)
        found.append(
            evaluate_nearest(model, weights, population, adaptation, label, draws)
        )
    rates, start = [adaptation.inner_learning_rate], model.init(seed)
    found.append(
        evaluate_local_training(
            model, start, population, adaptation, rates, Draws(seed)
        )
    )
    return found

"""The main job: every method on the same users and seeds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import pandas as pd

from tff_perfedavg.algorithms.registry import BASELINE, paper_methods
from tff_perfedavg.experiments.assemble.build import build_model
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.baselines import evaluate_baselines
from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
from tff_perfedavg.experiments.evaluation.local_training import evaluate_local_training
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.training.training import train


def compare(
    base: Experiment,
    seeds: Sequence[int],
    adaptation_steps: int,
    root: pathlib.Path,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trains and evaluates the paper's methods on every seed.

    The methods share what a seed decides: partition, initial weights, cohorts
    and batches.

    Args:
      base: the settings all runs share; algorithm, variant and seed are replaced.
      seeds: one run per method and seed.
      adaptation_steps: m; every user adapts by full-batch steps at the inner
        learning rate.
      root: directory under which the users' stores are kept.

    Returns:
      The rows of `evaluate_users` of every run, and, of every seed, those of
      `evaluate_baselines` with FedAvg's model and of `evaluate_local_training`, all
      with `algorithm` and `seed`.
    """
    adaptation = dataclasses.replace(base.local.adaptation, num_steps=adaptation_steps)
    frames, baselines = [], []
    for method, settings in paper_methods().items():
        for seed in seeds:
            experiment = base.replace(**settings, base_random_seed=seed)
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
                by_labels = evaluate_baselines(
                    model, result.weights, population, experiment.label
                )
                rates = [adaptation.inner_learning_rate]
                alone = evaluate_local_training(
                    model, model.init(seed), population, adaptation, rates, seed=seed
                )
                baselines += [by_labels.assign(seed=seed), alone.assign(seed=seed)]
    return (
        pd.concat(frames, ignore_index=True),
        pd.concat(baselines, ignore_index=True),
    )

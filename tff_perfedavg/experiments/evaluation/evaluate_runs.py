"""What users make of the models of trained runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.build import build_model
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.baselines import MAJORITY, evaluate_baselines
from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.rows import write_rows
from tff_perfedavg.experiments.files.run_paths import RunPaths, run_labels
from tff_perfedavg.experiments.files.sources import check_sources
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.models.model import Model


class TrainedRun(NamedTuple):
    """A run that is trained, with what evaluating it needs.

    Attributes:
      label: what it is called among the runs it is compared with.
      experiment: its settings.
      weights: the initial model, and learned rates behind it.
      population: its users.
      model: the model.
    """

    label: str
    experiment: Experiment
    weights: Sequence[np.ndarray]
    population: UserStore
    model: Model


def read_trained(runs: Sequence[RunPaths]) -> list[TrainedRun]:
    """Reads trained runs.

    Args:
      runs: where the runs are.

    Returns:
      The runs in their order, called by their algorithms where these differ, else by
      their names.

    Raises:
      CheckpointError: if a run has no readable model, or weights of other shapes
        than its model.
      ConfigError: if its store or model file has changed since it was trained.
    """
    loaded = [trained_model.load(run.model) for run in runs]
    labels = run_labels(runs, [experiment for _, experiment in loaded])
    found = []
    for run, label, (weights, experiment) in zip(runs, labels, loaded, strict=True):
        check_sources(experiment, run.model, run.root)
        population = build_population(experiment, run.root)
        model = build_model(experiment, population)
        expected = experiment.local.adaptation.parameters(model.init(0))
        if [w.shape for w in weights] != [w.shape for w in expected]:
            raise errors.CheckpointError(
                f"{run.model} has weights of other shapes than its model "
                f"{model.name!r}; train it again."
            )
        found.append(TrainedRun(label, experiment, weights, population, model))
    return found


def evaluate_runs(
    runs: Sequence[RunPaths],
    changes: Mapping[str, Any],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Evaluates trained runs, each on the population it was trained with.

    Args:
      runs: where the runs are.
      changes: fields of `AdaptationConfig` in the place of those that each run was
        trained for.
      seed: of the adaptation's batches.

    Returns:
      The rows of `evaluate_users` with a first column `algorithm`, the runs' labels.

    Raises:
      CheckpointError: as `read_trained`.
    """
    frames = []
    for run in read_trained(runs):
        config = dataclasses.replace(run.experiment.local.adaptation, **changes)
        frame = evaluate_users(
            run.model, run.weights, run.population, config, seed=seed
        )
        frame.insert(0, "algorithm", run.label)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def evaluate_baselines_of_runs(runs: Sequence[RunPaths]) -> pd.DataFrame:
    """Measures what trained runs' users reach by their label shares alone.

    Args:
      runs: where the runs are.

    Returns:
      The rows of `evaluate_baselines` of every run; of runs of the same users, which
      have one majority class, it is there once.

    Raises:
      CheckpointError: as `read_trained`.
      DataError: if labels are no classes.
    """
    frames: list[pd.DataFrame] = []
    told: set[str] = set()
    for run in read_trained(runs):
        frame = evaluate_baselines(run.model, run.weights, run.population, run.label)
        of_users = frame["algorithm"] == MAJORITY
        fingerprint = run.population.fingerprint
        if fingerprint in told:
            frame = frame[~of_users]
        elif told:
            frame.loc[of_users, "algorithm"] = f"{MAJORITY} of {run.label}'s users"
        told.add(fingerprint)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def have_same_users(runs: Sequence[RunPaths]) -> bool:
    """Whether trained runs have the very same users, rows and all."""
    experiments = [trained_model.load(run.model)[1] for run in runs]
    populations = {
        build_population(experiment, run.root).fingerprint
        for run, experiment in zip(runs, experiments, strict=True)
    }
    return len(populations) == 1


def save_rows(runs: Sequence[RunPaths], per_user: pd.DataFrame) -> None:
    """Writes what `evaluate_runs` gave for these runs beside each one's metrics."""
    # Runs have labels of their own, in their order.
    for run, label in zip(runs, per_user["algorithm"].unique(), strict=True):
        write_rows(per_user[per_user["algorithm"] == label], run.per_user)

"""Evaluation of trained runs: per-user results and baselines."""

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
from tff_perfedavg.experiments.evaluation.baseline_names import (
    has_classes,
    has_own_labels,
)
from tff_perfedavg.experiments.evaluation.baselines import evaluate_baselines
from tff_perfedavg.experiments.evaluation.classes_held import with_classes_held
from tff_perfedavg.experiments.evaluation.evaluate_users import Draws, evaluate_users
from tff_perfedavg.experiments.evaluation.local_training import (
    evaluate_local_training,
)
from tff_perfedavg.experiments.evaluation.measured_adaptation import (
    COLUMN,
    MeasuredAdaptation,
)
from tff_perfedavg.experiments.evaluation.nearest_rows import evaluate_nearest
from tff_perfedavg.experiments.evaluation.pooled_training import (
    evaluate_pooled,
    train_pooled,
)
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.rows import write_rows
from tff_perfedavg.experiments.files.run_paths import RunPaths, run_labels
from tff_perfedavg.experiments.files.sources import check_sources
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import AdaptationConfig


class TrainedRun(NamedTuple):
    """A trained run: settings, weights, users and model.

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

    def adaptation(self, changes: Mapping[str, Any]) -> AdaptationConfig:
        """Returns the adaptation it was trained for, with some fields replaced."""
        return dataclasses.replace(self.experiment.local.adaptation, **changes)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Key of local training: the users, the model and its initial weights."""
        experiment = self.experiment
        fingerprint = self.population.fingerprint
        return fingerprint, experiment.model, experiment.base_random_seed


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
    trained: Sequence[TrainedRun], changes: Mapping[str, Any], *, seed: int = 0
) -> pd.DataFrame:
    """Evaluates trained runs, each on the user store that it was trained with.

    Args:
      trained: the runs.
      changes: fields of `AdaptationConfig` in the place of those that each run was
        trained for.
      seed: of the adaptation's batches.

    Returns:
      The rows of `evaluate_users` with a first column `algorithm`, the runs' labels,
      where labels are classes `num_classes_held`, and a last one `adaptation`, of
      `MeasuredAdaptation`.
    """
    frames = []
    for run in trained:
        config = run.adaptation(changes)
        frame = evaluate_users(
            run.model, run.weights, run.population, config, seed=seed
        )
        frame.insert(0, "algorithm", run.label)
        frames.append(_told(frame, run, config, seed))
    return pd.concat(frames, ignore_index=True)


def evaluate_baselines_of_runs(
    trained: Sequence[TrainedRun],
    changes: Mapping[str, Any],
    *,
    seed: int = 0,
    pooled: bool = False,
) -> list[pd.DataFrame]:
    """Evaluates the baselines of trained runs on their users.

    Args:
      trained: as for `evaluate_runs`.
      changes: as for `evaluate_runs`.
      seed: as for `evaluate_runs`; of the users who train locally, too.
      pooled: whether to train a model on pooled rows, too.

    Returns:
      For each run the rows of `evaluate_baselines`, unless labels are no classes, of
      `evaluate_nearest` where they are users' own, of `evaluate_local_training` and, if
      asked for, of `evaluate_pooled`, with the last columns of `evaluate_runs`. Runs of
      the same users, model and start have local training in common, and it tries the
      rates of all of them.
    """
    configs = [run.adaptation(changes) for run in trained]
    rates = [config.inner_learning_rate for config in configs]
    local: dict[tuple, pd.DataFrame] = {}
    pools: dict[tuple, list[np.ndarray]] = {}
    found = []
    for run, config in zip(trained, configs, strict=True):
        model, population = run.model, run.population
        start = model.init(run.experiment.base_random_seed)
        frames = []
        if has_classes(population):
            weights = config.weights(run.weights)
            frames.append(evaluate_baselines(model, weights, population, run.label))
        if has_own_labels(population):
            weights = config.weights(run.weights)
            frames.append(
                evaluate_nearest(
                    model, weights, population, config, run.label, Draws(seed)
                )
            )
        if run.origin not in local:
            local[run.origin] = evaluate_local_training(
                model, start, population, config, rates, Draws(seed)
            )
        frames.append(local[run.origin])
        if pooled:
            if run.origin not in pools:
                pools[run.origin] = train_pooled(model, start, population, seed=seed)
            weights = pools[run.origin]
            frames.append(
                evaluate_pooled(model, weights, population, config, seed=seed)
            )
        frame = pd.concat(frames, ignore_index=True)
        found.append(_told(frame, run, config, seed))
    return found


def have_same_users(trained: Sequence[TrainedRun]) -> bool:
    """Whether trained runs have the same users, rows included."""
    return len({run.population.fingerprint for run in trained}) == 1


def _told(
    frame: pd.DataFrame, run: TrainedRun, config: AdaptationConfig, seed: int
) -> pd.DataFrame:
    """Adds the columns that tell of the users, and how they adapt."""
    measured = MeasuredAdaptation.of(config, seed)
    frame = with_classes_held(frame, run.population)
    return frame.assign(**{COLUMN: str(measured)})


def complete(
    without_rows: Sequence[RunPaths],
    without_baselines: Sequence[RunPaths],
    steps: int,
) -> list[str]:
    """Evaluates what runs lack, per-user results or baselines, and writes it.

    Args:
      without_rows: runs without per-user results.
      without_baselines: runs without baselines, which are measured with the adaptation
        of their results.
      steps: users' steps, where results are missing.

    Returns:
      Warnings: of runs whose results do not tell of which adaptation they are.
    """
    runs = list(dict.fromkeys([*without_rows, *without_baselines]))
    trained = dict(zip(runs, read_trained(runs), strict=True))
    if without_rows:
        of_runs = [trained[run] for run in without_rows]
        save_rows(without_rows, evaluate_runs(of_runs, {"num_steps": steps}))
    alike: dict[str, list[RunPaths]] = {}
    for run in without_baselines:
        measured = MeasuredAdaptation.read(pd.read_csv(run.per_user), run.per_user)
        alike.setdefault(str(measured), []).append(run)
    unknown = alike.pop("", [])
    for text, found in alike.items():
        measured = MeasuredAdaptation.parse(text)
        of_runs = [trained[run] for run in found]
        baselines = evaluate_baselines_of_runs(
            of_runs, measured.changes, seed=measured.seed
        )
        save_baselines(found, baselines)
    return [
        f"The results of {run.name} do not tell of which adaptation they are, so that "
        "no baselines stand beside them; evaluate the run again."
        for run in unknown
    ]


def save_baselines(runs: Sequence[RunPaths], baselines: Sequence[pd.DataFrame]) -> None:
    """Writes the baselines of runs beside their metrics.

    Args:
      runs: where the runs are.
      baselines: of `evaluate_baselines_of_runs`, one of each run.
    """
    for run, frame in zip(runs, baselines, strict=True):
        write_rows(frame, run.baselines)


def save_rows(runs: Sequence[RunPaths], per_user: pd.DataFrame) -> None:
    """Writes the per-user results of runs beside their metrics.

    Args:
      runs: where the runs are.
      per_user: of `evaluate_runs`, for these runs in their order.
    """
    # Runs have labels of their own, in their order.
    for run, label in zip(runs, per_user["algorithm"].unique(), strict=True):
        write_rows(per_user[per_user["algorithm"] == label], run.per_user)

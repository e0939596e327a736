"""What every user makes of an initial model, seen in training or new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.build import build_model
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.baselines import MAJORITY, evaluate_baselines
from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.rows import write_rows
from tff_perfedavg.experiments.files.run_paths import RunPaths, run_labels
from tff_perfedavg.experiments.files.sources import check_sources
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.federated.layout import choose_client_data
from tff_perfedavg.federated.personalization_eval import (
    build_personalization_eval,
    stack_results,
)
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import AdaptationConfig

# Sets these draws apart from every other use of the same seed.
_CHOICE_OF_USERS = 3


def evaluate_users(
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    config: AdaptationConfig,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Adapts and measures every user of a population, seen and new.

    `build_evaluator` in one go, for a single set of weights.

    Args:
      model: the model.
      weights: its initial weights.
      population: the users.
      config: the adaptation, m steps.
      seed: of the adaptation's batches and rows, if it draws any.

    Returns:
      What the function returned by `build_evaluator` does.
    """
    return build_evaluator(model, population, config, seed=seed)(weights)


def build_evaluator(
    model: Model,
    population: UserStore,
    config: AdaptationConfig,
    *,
    groups: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Callable[[Sequence[np.ndarray]], pd.DataFrame]:
    """Builds the evaluation of any weights by every user of a population.

    Args:
      model: the model.
      population: the users.
      config: the adaptation, m steps.
      groups: numbers of the users by group; by default `choose_users` of all.
      seed: of the adaptation's batches and rows, if it draws any.

    Returns:
      A function from weights to one row per user and step 0..m, with columns
      `users` (`seen` or `new`), `user`, `step`, `loss`, `accuracy` (from 0 to 1),
      `num_adaptation_examples` and `num_evaluation_examples`. NaN where a user has no
      evaluation rows; a user whose model diverged has an infinite loss and accuracy 0.
    """
    groups = groups or choose_users(population)
    everyone = np.concatenate(list(groups.values()))
    client_data = choose_client_data(population, model, len(everyone))
    evaluate = build_personalization_eval(
        model, config, client_data=client_data, seed=seed
    )

    def evaluate_weights(weights):
        server_weights = tff.learning.models.ModelWeights(tuple(weights), ())
        results = stack_results(evaluate(server_weights, client_data.clients(everyone)))
        return _per_user(results, groups)

    return evaluate_weights


def _per_user(
    results: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Returns TFF's results as rows, a user's steps one after another.

    Args:
      results: by name, `[users]` or `[users, steps]`.
      groups: numbers of the users by group, which give the rows their order.
    """
    everyone = np.concatenate(list(groups.values()))
    # Several workers' come in the order in which they are done.
    order = np.argsort(results["user"])
    place = order[np.searchsorted(results["user"], everyone, sorter=order)]
    results = {name: values[place] for name, values in results.items()}
    # A model that diverged is right in nothing, whatever its labels come out as;
    # NaN is left for users without evaluation rows.
    has_rows = results["num_evaluation_examples"][:, np.newaxis] > 0
    diverged = has_rows & ~np.isfinite(results["loss"])
    loss = np.where(diverged, np.inf, results["loss"])
    had_accuracy = ~np.isnan(results["accuracy"])
    accuracy = np.where(diverged & had_accuracy, 0.0, results["accuracy"])
    steps = loss.shape[1]
    sizes = [steps * len(users) for users in groups.values()]
    frame = pd.DataFrame(
        {
            "users": np.repeat(list(groups), sizes),
            "user": np.repeat(results["user"], steps),
            "step": np.tile(np.arange(steps), len(everyone)),
            "loss": loss.ravel(),
            "accuracy": accuracy.ravel(),
        }
    )
    for name in ("num_adaptation_examples", "num_evaluation_examples"):
        frame[name] = np.repeat(results[name], steps)
    return frame


def choose_users(
    population: UserStore, most: int = 0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns the users seen in training and the new ones.

    Args:
      population: the users.
      most: of each group, drawn with the seed, in ascending order; 0 for all.
      seed: of the draw.
    """
    rng = np.random.default_rng([seed, _CHOICE_OF_USERS])
    groups = {SEEN: population.training_users, NEW: population.new_users}
    if not most:
        return groups
    return {
        name: np.sort(rng.choice(users, min(most, len(users)), replace=False))
        for name, users in groups.items()
    }


class TrainedRun(NamedTuple):
    """A run that is trained, with what evaluating it needs.

    Attributes:
      label: what it is called among the runs it is compared with.
      experiment: its settings.
      weights: the initial model.
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
        if [w.shape for w in weights] != [w.shape for w in model.init(0)]:
            raise errors.CheckpointError(
                f"{run.model} has weights of other shapes than its model "
                f"{model.name!r}; train it again."
            )
        found.append(TrainedRun(label, experiment, weights, population, model))
    return found


def evaluate_runs(
    runs: Sequence[RunPaths],
    inner_learning_rate: float | None,
    num_steps: int,
    batch_size: int | None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Evaluates trained runs, each on the population it was trained with.

    Args:
      runs: where the runs are.
      inner_learning_rate: alpha; None takes each run's own.
      num_steps: m.
      batch_size: rows per adaptation step, None for all.
      seed: of the adaptation's batches.

    Returns:
      The rows of `evaluate_users` with a first column `algorithm`, the runs' labels.

    Raises:
      CheckpointError: as `read_trained`.
    """
    frames = []
    for run in read_trained(runs):
        rate = inner_learning_rate or run.experiment.inner_learning_rate
        config = AdaptationConfig(rate, num_steps, batch_size)
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

"""Per-user evaluation of an initial model, before and after adaptation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import tensorflow_federated as tff

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN
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
    """Adapts and evaluates every user of a store, training users and new users.

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
    """Builds a function that evaluates weights on every user of a store.

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
        return per_user_rows(results, groups)

    return evaluate_weights


def per_user_rows(
    results: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Returns TFF's results in long format: one row per user and step.

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


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws of an evaluation.

    Attributes:
      seed: of users, of their rows and batches.
      num_users: how many of each group are evaluated, by `choose_users`; 0 for all.
    """

    seed: int = 0
    num_users: int = 0


def choose_users(
    population: UserStore,
    most: int = 0,
    seed: int = 0,
    among: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the training users and the new users, or a sample of each.

    Args:
      population: the users.
      most: of each group, drawn with the seed, in ascending order; 0 for all.
      seed: of the draw.
      among: numbers of the users by group to draw from; by default all.
    """
    rng = np.random.default_rng([seed, _CHOICE_OF_USERS])
    groups = among or {SEEN: population.training_users, NEW: population.new_users}
    if not most:
        return dict(groups)
    return {
        name: np.sort(rng.choice(users, min(most, len(users)), replace=False))
        for name, users in groups.items()
    }

"""Local training baseline: every user alone, from random initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.evaluation.baseline_names import CONVERGED, LOCAL
from tff_perfedavg.experiments.evaluation.evaluate_users import (
    Draws,
    choose_users,
    per_user_rows,
)
from tff_perfedavg.federated.layout import choose_client_data
from tff_perfedavg.federated.local_training import build_local_training_eval
from tff_perfedavg.federated.personalization_eval import stack_results
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import AdaptationConfig

# Tried beside the adaptation's own, which suits a trained model and may be far too low
# or too high for a random start.
LEARNING_RATES = (0.01, 0.1, 1.0)
# Of each group. A user that trains alone takes many times the steps of one that adapts.
MOST_USERS = 50


def evaluate_local_training(
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    adaptation: AdaptationConfig,
    learning_rates: Sequence[float],
    draws: Draws,
) -> pd.DataFrame:
    """Evaluates users that train on their own adaptation rows alone.

    All weights move, whatever moves in the adaptation.

    Args:
      model: the model.
      weights: the random start, `model.init(seed)` of the run's seed.
      population: the users.
      adaptation: gives the number of steps, the rows of a step and those of a user.
      learning_rates: to try beside `LEARNING_RATES`; for each number of steps a user
        takes the rate that leaves the loss on its adaptation rows lowest after them.
      draws: the seed, and who is evaluated: at most `MOST_USERS` of each group train.

    Returns:
      The rows of `evaluate_users` behind columns `algorithm` and `baseline`: of
      `LOCAL` by step, with the `learning_rate` chosen for it (of several that are as
      good, as all are without a step, the lowest), and of `CONVERGED` as step 0, with
      `num_steps_taken`.
    """
    # Nothing of the adaptation but these: no part that stays, no pull to the start.
    steps = AdaptationConfig(
        adaptation.inner_learning_rate,
        adaptation.num_steps,
        adaptation.batch_size,
        adaptation.num_rows,
        rows_per_class=adaptation.rows_per_class,
    )
    rates = sorted({*learning_rates, *LEARNING_RATES})
    seed = draws.seed
    evaluated = choose_users(population, draws.num_users, seed)
    groups = choose_users(population, MOST_USERS, seed, evaluated)
    everyone = np.concatenate(list(groups.values()))
    client_data = choose_client_data(population, model, len(everyone))
    evaluate = build_local_training_eval(model, steps, rates, client_data, seed=seed)
    results = stack_results(evaluate(list(weights), client_data.clients(everyone)))
    frames = [_rows(CONVERGED, _converged(results), groups)]
    # Without a step there is the random start alone.
    if adaptation.num_steps:
        frames.insert(0, _rows(LOCAL, results, groups))
    return pd.concat(frames, ignore_index=True)


def _converged(results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the results of `CONVERGED` under the names of those by step."""
    found = {
        name: values
        for name, values in results.items()
        if name == "user" or name.startswith("num_")
    }
    for name in ("loss", "accuracy"):
        found[name] = results[f"converged_{name}"][:, np.newaxis]
    return {**found, "num_steps_taken": results["converged_steps"]}


def _rows(
    name: str, results: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    frame = per_user_rows(results, groups)
    if "learning_rate" in results:
        rates = pd.DataFrame(results["learning_rate"], results["user"]).stack()
        frame = frame.join(rates.rename("learning_rate"), on=["user", "step"])
    if "num_steps_taken" in results:
        by_user = pd.Series(results["num_steps_taken"], results["user"])
        frame["num_steps_taken"] = frame["user"].map(by_user)
    frame.insert(0, "baseline", name)
    frame.insert(0, "algorithm", name)
    return frame

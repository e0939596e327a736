"""Nearest neighbour and nearest centroid as baselines, on inputs and on features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.evaluation.baseline_names import (
    CENTROID,
    FEATURE_CENTROID,
    FEATURE_NEIGHBOUR,
    NEIGHBOUR,
    name_for,
)
from tff_perfedavg.experiments.evaluation.evaluate_users import Draws, choose_users
from tff_perfedavg.federated import nearest
from tff_perfedavg.federated.layout import choose_client_data
from tff_perfedavg.federated.personalization_eval import stack_results
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import AdaptationConfig

_ALL = Draws()
_RULES = {
    NEIGHBOUR: (nearest.NEIGHBOUR, 0),
    CENTROID: (nearest.CENTROID, 0),
    FEATURE_NEIGHBOUR: (nearest.NEIGHBOUR, 1),
    FEATURE_CENTROID: (nearest.CENTROID, 1),
}


def evaluate_nearest(
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    adaptation: AdaptationConfig,
    label: str,
    draws: Draws = _ALL,
) -> pd.DataFrame:
    """Evaluates nearest-neighbour and centroid classifiers of users' adaptation rows.

    Args:
      model: the model.
      weights: the initial model, whose features are compared.
      population: the users; labels must be classes.
      adaptation: which of their rows users may use.
      label: what the model's run is called.
      draws: of users and of their rows; by default every user is evaluated.

    Returns:
      The rows of `evaluate_users`, of step 0 alone, behind columns `algorithm` and
      `baseline`. The loss is the share of rows answered wrongly, since these rules give
      no probabilities. Without features, those baselines have no rows.
    """
    groups = choose_users(population, draws.num_users, draws.seed)
    everyone = np.concatenate(list(groups.values()))
    client_data = choose_client_data(population, model, len(everyone))
    evaluate = nearest.build_nearest_eval(
        model, adaptation, client_data, seed=draws.seed
    )
    results = stack_results(evaluate(list(weights), client_data.clients(everyone)))
    by_user = pd.DataFrame(
        {
            "user": results["user"],
            **{name: results[rule][:, of] for name, (rule, of) in _RULES.items()},
            **{name: v for name, v in results.items() if name.startswith("num_")},
        }
    ).set_index("user")
    frames = []
    for name in _RULES:
        if name in (FEATURE_NEIGHBOUR, FEATURE_CENTROID) and model.features is None:
            continue
        found = by_user.loc[everyone]
        frames.append(
            pd.DataFrame(
                {
                    "algorithm": name_for(name, label),
                    "baseline": name,
                    "users": np.repeat([*groups], [len(u) for u in groups.values()]),
                    "user": everyone,
                    "step": 0,
                    "loss": 1 - found[name].to_numpy(),
                    "accuracy": found[name].to_numpy(),
                    "num_adaptation_examples": found["num_adaptation_examples"].array,
                    "num_evaluation_examples": found["num_evaluation_examples"].array,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)

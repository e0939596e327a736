"""Per-user evaluation before and after every adaptation step."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.algorithms.client_data import ClientData, SequenceClientData
from tff_perfedavg.algorithms.client_work import model_weights_type
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adaptation import adapt
from tff_perfedavg.optimization.config import AdaptationConfig

# The round numbers that key evaluation draws; training rounds count from 0.
_EVALUATION_ROUND, _CHOICE_OF_ROWS = -1, -2


def build_personalization_eval(
    model: Model,
    config: AdaptationConfig,
    *,
    client_data: ClientData | None = None,
    seed: int = 0,
) -> tff.Computation:
    """Builds the evaluation of initial weights by what users make of them.

    Every user adapts on its adaptation rows and is measured on its evaluation
    rows, which adaptation never sees.

    Args:
      model: what to evaluate.
      config: rate, number of steps m, batch size and rows of the adaptation.
      client_data: the form of the clients' data, by default sequences of batches.
      seed: of the batches drawn, where the configuration asks for batches.

    Returns:
      A computation from (`tff.learning.models.ModelWeights` at the server, users
      at the clients) to one result per client, in the order given: `user` int32,
      `loss` and `accuracy` float32 `[m + 1]` (entry i after i steps; NaN where
      the user has no evaluation rows or the model no classes),
      `num_adaptation_examples` (those used) and `num_evaluation_examples` int32. A user
      without adaptation rows keeps the initial weights. Where clients are blocks of
      users, all have a leading axis `[users]`.
    """
    client_data = client_data or SequenceClientData(model)
    weights_type = model_weights_type(model)
    seed_pair = batches.seed_pair(seed)

    @tff.tensorflow.computation(weights_type, client_data.evaluation_type)
    def evaluate_users(model_weights, value):
        def evaluate_user(user, adaptation, evaluation):
            def key(role):
                return batches.user_key(tf.constant(seed_pair), tf.constant(role), user)

            evaluation_batch = batches.all_rows(evaluation)
            if config.num_rows is not None:
                adaptation = batches.some_rows(
                    adaptation, key(_CHOICE_OF_ROWS), config.num_rows
                )
            if config.batch_size is None:
                everything = batches.all_rows(adaptation)
                draw = lambda step: [everything]  # noqa: E731
            else:
                draw = batches.batch_source(
                    adaptation,
                    key(_EVALUATION_ROUND),
                    config.num_steps,
                    [config.batch_size],
                )
            _, measured = adapt(
                model.batch_loss,
                model_weights.trainable,
                lambda step: draw(step)[0],
                config.inner_learning_rate,
                config.num_steps,
                lambda weights: model.evaluate(weights, evaluation_batch),
            )
            return collections.OrderedDict(
                user=user,
                loss=measured[:, 0],
                accuracy=measured[:, 1],
                num_adaptation_examples=adaptation.num_rows,
                num_evaluation_examples=evaluation.num_rows,
            )

        return client_data.map_users(value, evaluate_user)

    @tff.federated_computation(
        tff.FederatedType(weights_type, tff.SERVER),
        tff.FederatedType(client_data.evaluation_type, tff.CLIENTS),
    )
    def evaluate(weights, values):
        return tff.federated_map(
            evaluate_users, (tff.federated_broadcast(weights), values)
        )

    return evaluate


def stack_results(results: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Joins the results of users or of blocks of users along an axis `[users]`."""
    # A block's numbers of users have an axis, a user's number has none.
    if np.ndim(results[0]["user"]) == 0:
        return {name: np.stack([r[name] for r in results]) for name in results[0]}
    return {name: np.concatenate([r[name] for r in results]) for name in results[0]}

"""Per-user evaluation before and after every adaptation step."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.federated.client_data import ClientData, SequenceClientData
from tff_perfedavg.federated.client_work import weights_type_of
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adaptation import (
    Adaptation,
    adapt,
    adaptation_batches,
    adaptation_rows,
)
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm


def build_personalization_eval(
    model: Model,
    adaptation: Adaptation | AdaptationConfig | LocalAlgorithm | AlgorithmConfig,
    *,
    client_data: ClientData | None = None,
    seed: int = 0,
) -> tff.Computation:
    """Builds the per-user evaluation before and after every adaptation step.

    Args:
      model: what to evaluate.
      adaptation: how every user adapts, in m steps, or the algorithm whose weights are
        evaluated, or the configuration of one of them.
      client_data: the form of the clients' data, by default sequences of batches.
      seed: of the batches drawn, where the configuration asks for batches.

    Returns:
      A computation from (`tff.learning.models.ModelWeights` at the server, as the
      algorithm's process gives them or all trainable, and users at the clients) to one
      result per client, in their order: `user` int32, `loss` and `accuracy` float32
      `[m + 1]` (entry i after i steps; NaN where the user has no evaluation rows or the
      model no classes), `num_adaptation_examples` (those used) and
      `num_evaluation_examples` int32. A user without adaptation rows keeps the initial
      weights. Blocks of users have a leading axis `[users]`.
    """
    client_data = client_data or SequenceClientData(model)
    value_type, seed_pair = client_data.evaluation_type, batches.seed_pair(seed)
    how, num_fixed = _taken_apart(adaptation.build())
    how.moves.check(model)
    weights_type = weights_type_of(how.parameters(model.init(0)), num_fixed)

    @tff.tensorflow.computation(weights_type, value_type)
    def evaluate_users(model_weights, value):  # type: ignore[no-untyped-def]
        def evaluate_user(
            user: tf.Tensor, rows: batches.UserRows, evaluation: batches.UserRows
        ) -> collections.OrderedDict[str, tf.Tensor]:
            seed = tf.constant(seed_pair)
            draw = adaptation_batches(rows, seed, user, how)
            held_out = batches.all_rows(evaluation)
            weights = [*model_weights.trainable, *model_weights.non_trainable]
            measure = functools.partial(model.evaluate, batch=held_out)
            _, measured = adapt(model.batch_loss, weights, draw, how, measure)
            return collections.OrderedDict(
                user=user,
                loss=measured[:, 0],
                accuracy=measured[:, 1],
                num_adaptation_examples=adaptation_rows(rows, seed, user, how).num_rows,
                num_evaluation_examples=evaluation.num_rows,
            )

        return client_data.map_users(value, evaluate_user)

    at_server = tff.FederatedType(weights_type, tff.SERVER)

    @tff.federated_computation(at_server, tff.FederatedType(value_type, tff.CLIENTS))
    def evaluate(weights, values):  # type: ignore[no-untyped-def]
        weights = tff.federated_broadcast(weights)
        return tff.federated_map(evaluate_users, (weights, values))

    return evaluate


def _taken_apart(value: Adaptation | LocalAlgorithm) -> tuple[Adaptation, int]:
    """Returns the adaptation, and how many of the last weights are not trainable."""
    if isinstance(value, LocalAlgorithm):
        return value.adaptation, value.num_fixed
    return value, 0


def stack_results(results: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Concatenates results of users or of blocks of users along an axis `[users]`."""
    # A block's numbers of users have an axis, a user's number has none.
    if np.ndim(results[0]["user"]) == 0:
        return {name: np.stack([r[name] for r in results]) for name in results[0]}
    return {name: np.concatenate([r[name] for r in results]) for name in results[0]}

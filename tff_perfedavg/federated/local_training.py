"""Local-training baseline: per-user evaluation of training on own rows alone."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.federated.client_data import ClientData
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adam import train_to_convergence
from tff_perfedavg.optimization.adaptation import Adaptation, adaptation_batches
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.rate_choice import adapt_at_best_rate


def build_local_training_eval(
    model: Model,
    adaptation: AdaptationConfig,
    learning_rates: Sequence[float],
    client_data: ClientData,
    *,
    seed: int = 0,
) -> tff.Computation:
    """Builds the per-user evaluation of local training from untrained weights.

    Every user trains all weights on its adaptation rows in two ways: by the steps of
    the adaptation, for each number of steps at whichever of several rates leaves the
    loss on these rows lowest after so many; and by `train_to_convergence`. Evaluation
    rows only judge.

    Args:
      model: what is trained.
      adaptation: number of steps, their batches, and the most rows a user has.
      learning_rates: to choose from.
      client_data: the form of the clients' data.
      seed: of the batches drawn, where the configuration asks for batches.

    Returns:
      A computation from (a list of weights at the server, users at the clients) to
      one result per client: `user`; `loss` and `accuracy` float32 `[m + 1]` of the
      adaptation's steps, and `learning_rate`, those chosen; `converged_loss`,
      `converged_accuracy` and `converged_steps`; `num_adaptation_examples` and
      `num_evaluation_examples`, as in `build_personalization_eval`.
    """
    weights_type = tff.types.tensorflow_to_type(
        [tf.TensorSpec(w.shape, w.dtype) for w in model.init(0)]
    )
    value_type = client_data.evaluation_type
    train_user = _user_training(model, adaptation.build(), learning_rates, seed)

    @tff.tensorflow.computation(weights_type, value_type)
    def train_users(weights, value):
        return client_data.map_users(value, functools.partial(train_user, weights))

    at_server = tff.FederatedType(weights_type, tff.SERVER)

    @tff.federated_computation(at_server, tff.FederatedType(value_type, tff.CLIENTS))
    def evaluate(weights, values):
        return tff.federated_map(
            train_users, (tff.federated_broadcast(weights), values)
        )

    return evaluate


def _user_training(
    model: Model, how: Adaptation, learning_rates: Sequence[float], seed: int
) -> Callable[..., Mapping[str, tf.Tensor]]:
    """Returns a function from weights, user and its two splits to its results."""
    whole = dataclasses.replace(how, batch_size=None)
    seed_pair, loss = batches.seed_pair(seed), model.batch_loss

    def train_user(weights, user, rows, evaluation):
        key = tf.constant(seed_pair)
        draw = adaptation_batches(rows, key, user, how)
        own = adaptation_batches(rows, key, user, whole)(tf.constant(0))
        held_out = batches.all_rows(evaluation)

        def measure(trained):
            own_loss = tf.cast(loss(trained, own), tf.float32)
            return tf.concat([model.evaluate(trained, held_out), [own_loss]], 0)

        measured, rates = adapt_at_best_rate(
            loss, weights, draw, how, learning_rates, measure
        )
        converged, steps = train_to_convergence(loss, weights, own)
        converged = model.evaluate(converged, held_out)
        return collections.OrderedDict(
            user=user,
            loss=measured[:, 0],
            accuracy=measured[:, 1],
            learning_rate=rates,
            converged_loss=converged[0],
            converged_accuracy=converged[1],
            converged_steps=steps,
            num_adaptation_examples=tf.shape(own.mask)[0],
            num_evaluation_examples=evaluation.num_rows,
        )

    return train_user

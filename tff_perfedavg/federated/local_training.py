"""Per-user evaluation of local training: what each user reaches by its rows alone."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.federated.client_data import ClientData
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adam import train_to_convergence
from tff_perfedavg.optimization.adaptation import adapt, adaptation_batches
from tff_perfedavg.optimization.config import AdaptationConfig


def build_local_training_eval(
    model: Model,
    adaptation: AdaptationConfig,
    learning_rates: Sequence[float],
    client_data: ClientData,
    *,
    seed: int = 0,
) -> tff.Computation:
    """Builds the evaluation of weights that nobody has trained.

    Every user trains all of them on its adaptation rows in two ways: by the steps of
    the adaptation, at whichever of several rates leaves the loss on these rows lowest
    after the last step; and by `train_to_convergence`. Evaluation rows only judge.

    Args:
      model: what is trained.
      adaptation: number of steps, their batches, and the most rows a user has.
      learning_rates: to choose from.
      client_data: the form of the clients' data.
      seed: of the batches drawn, where the configuration asks for batches.

    Returns:
      A computation from (a list of weights at the server, users at the clients) to
      one result per client: `user`; `loss` and `accuracy` float32 `[m + 1]` of the
      adaptation's steps, and `learning_rate`, the one chosen; `converged_loss`,
      `converged_accuracy` and `converged_steps`; `num_adaptation_examples` and
      `num_evaluation_examples`, as in `build_personalization_eval`.
    """
    weights_type = tff.types.tensorflow_to_type(
        [tf.TensorSpec(w.shape, w.dtype) for w in model.init(0)]
    )
    value_type = client_data.evaluation_type
    seed_pair, how = batches.seed_pair(seed), adaptation.build()
    whole = dataclasses.replace(how, batch_size=None)

    @tff.tensorflow.computation(weights_type, value_type)
    def train_users(weights, value):
        def train_user(user, rows, evaluation):
            key = tf.constant(seed_pair)
            draw = adaptation_batches(rows, key, user, how)
            own = adaptation_batches(rows, key, user, whole)(tf.constant(0))
            held_out = batches.all_rows(evaluation)

            def measure(trained):
                own_loss = tf.cast(model.batch_loss(trained, own), tf.float32)
                return tf.concat([model.evaluate(trained, held_out), [own_loss]], 0)

            def at_rate(rate):
                steps = dataclasses.replace(how, learning_rate=rate)
                return adapt(model.batch_loss, weights, draw, steps, measure)[1]

            rates = tf.constant(learning_rates, tf.float32)
            measured, chosen = _of_lowest_loss(
                tf.map_fn(at_rate, rates, parallel_iterations=1)
            )
            converged, steps = train_to_convergence(model.batch_loss, weights, own)
            converged = model.evaluate(converged, held_out)
            return collections.OrderedDict(
                user=user,
                loss=measured[:, 0],
                accuracy=measured[:, 1],
                learning_rate=rates[chosen],
                converged_loss=converged[0],
                converged_accuracy=converged[1],
                converged_steps=steps,
                num_adaptation_examples=tf.shape(own.mask)[0],
                num_evaluation_examples=evaluation.num_rows,
            )

        return client_data.map_users(value, train_user)

    at_server = tff.FederatedType(weights_type, tff.SERVER)

    @tff.federated_computation(at_server, tff.FederatedType(value_type, tff.CLIENTS))
    def evaluate(weights, values):
        return tff.federated_map(
            train_users, (tff.federated_broadcast(weights), values)
        )

    return evaluate


def _of_lowest_loss(by_rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the measurements of the rate chosen, and its number.

    Args:
      by_rate: `[rates, m + 1, 3]`, losses on the rows trained on the last of three.
    """
    last = by_rate[:, -1, 2]
    last = tf.where(tf.math.is_finite(last), last, np.inf)
    chosen = tf.argmin(last)
    return by_rate[chosen], chosen

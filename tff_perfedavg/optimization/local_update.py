"""A user's part of a round: tau local steps from the server's weights.

Graph code, like `meta_gradient`: call it inside a `tf.function` or a
`tff.tensorflow.computation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.batches import BatchSource, DrawBatches
from tff_perfedavg.optimization.config import LocalConfig, PerFedAvgConfig
from tff_perfedavg.optimization.meta_gradient import (
    Loss,
    Weights,
    loss_and_gradient,
    meta_gradient,
    subtract,
)


class LocalUpdate(NamedTuple):
    """What a user's local steps produced; for several users, with a leading axis.

    Attributes:
      weights: the weights after the last step.
      support_loss: scalar, mean over steps of the loss at the start of each step.
      query_loss: scalar, mean over steps of the loss after the inner step, on
        the query batch; equal to `support_loss` where there is no inner step.
    """

    weights: list[tf.Tensor]
    support_loss: tf.Tensor
    query_loss: tf.Tensor


def local_update(
    loss: Loss, weights: Weights, draw_batches: DrawBatches, config: LocalConfig
) -> LocalUpdate:
    """Takes a user's tau local steps.

    With a `PerFedAvgConfig` these are steps along the meta-gradient (Per-FedAvg,
    arXiv 2002.07948, Algorithm 1, lines 4 to 8); with a `FedAvgConfig`, SGD steps
    (FedAvg, arXiv 1602.05629, Algorithm 1, ClientUpdate).

    Args:
      loss: the user's loss.
      weights: w_k, the server's weights.
      draw_batches: gives a step's batches, of `config.batch_sizes`.
      config: rates, tau, variant.
    """

    def step(number, weights):
        return _local_step(loss, weights, draw_batches(number), config)

    zero = tf.zeros([], weights[0].dtype)
    return _repeat(step, [tf.convert_to_tensor(w) for w in weights], zero, config)


def vectorized_local_update(
    loss: Loss,
    weights: Weights,
    source: BatchSource,
    config: LocalConfig,
    num_users: tf.Tensor,
) -> LocalUpdate:
    """Takes the local steps of several users side by side.

    Args:
      loss: the users' loss.
      weights: w_k, the same for all.
      source: chooses a step's batches with a leading axis `[users]`, and reads those
        of one user.
      config: as in `local_update`.
      num_users: int32 scalar.
    """

    def step(number, weights):
        return tf.vectorized_map(
            lambda of_user: _local_step(
                loss, of_user[0], source.read(of_user[1]), config
            ),
            (weights, source.choose(number)),
        )

    stacked = [
        tf.broadcast_to(w, tf.concat([[num_users], tf.shape(w)], 0)) for w in weights
    ]
    return _repeat(step, stacked, tf.zeros([num_users], weights[0].dtype), config)


def _local_step(
    loss: Loss, weights: Weights, batches: Sequence[Batch], config: LocalConfig
) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """Returns the weights after one step, the support and the query loss."""
    if isinstance(config, PerFedAvgConfig):
        support, query, *hessian = batches
        meta = meta_gradient(
            loss,
            weights,
            support,
            query,
            hessian[0] if hessian else None,
            config,
            scale=config.outer_learning_rate,
        )
        return subtract(weights, meta.gradient), meta.support_loss, meta.query_loss
    (batch,) = batches
    batch_loss, change = loss_and_gradient(loss, weights, batch, config.learning_rate)
    return subtract(weights, change), batch_loss, batch_loss


def _repeat(
    step: Callable, weights: Weights, zero: tf.Tensor, config: LocalConfig
) -> LocalUpdate:
    """Runs tau steps in a graph loop: short to trace whatever tau."""
    num_steps = config.num_local_steps

    def body(number, weights, support_sum, query_sum):
        weights, support_loss, query_loss = step(number, weights)
        return number + 1, weights, support_sum + support_loss, query_sum + query_loss

    _, weights, support_sum, query_sum = tf.while_loop(
        lambda number, *_: number < num_steps,
        body,
        (tf.constant(0), weights, zero, zero),
        maximum_iterations=num_steps,
    )
    count = tf.cast(num_steps, zero.dtype)
    return LocalUpdate(list(weights), support_sum / count, query_sum / count)

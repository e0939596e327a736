"""A user's part of a round: tau local steps from the server's weights.

Graph code, like `meta_gradient`: call it inside a `tf.function` or a
`tff.tensorflow.computation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization import config as config_lib
from tff_perfedavg.optimization.meta_gradient import (
    Loss,
    Weights,
    descend,
    loss_and_gradient,
    meta_gradient,
)

# From the int32 scalar step number and the roles' batch sizes to their batches.
DrawBatches = Callable[[tf.Tensor, Sequence[int]], Sequence[Batch]]


class LocalUpdate(NamedTuple):
    """What a user's local steps produced.

    Attributes:
      weights: the weights after the last step.
      support_loss: scalar, mean over steps of the loss at the start of each step.
      query_loss: scalar, mean over steps of the loss after the inner step, on
        the query batch; equal to `support_loss` where there is no inner step.
    """

    weights: list[tf.Tensor]
    support_loss: tf.Tensor
    query_loss: tf.Tensor


def per_fed_avg_update(
    loss: Loss,
    weights: Weights,
    draw_batches: DrawBatches,
    config: config_lib.PerFedAvgConfig,
) -> LocalUpdate:
    """Takes tau meta-gradient steps (Per-FedAvg, Algorithm 1, lines 4 to 8).

    Args:
      loss: the user's loss.
      weights: w_k, the server's weights.
      draw_batches: gives D, D' and, unless the variant is `first_order`, D''.
      config: rates, tau, batch sizes, variant.
    """
    batch_sizes = [config.support_batch_size, config.query_batch_size]
    if config.variant != config_lib.FIRST_ORDER:
        batch_sizes.append(config.hessian_batch_size)

    def step(number, weights):
        support, query, *hessian = draw_batches(number, batch_sizes)
        meta = meta_gradient(
            loss, weights, support, query, hessian[0] if hessian else None, config
        )
        stepped = descend(weights, meta.gradient, config.outer_learning_rate)
        return stepped, meta.support_loss, meta.query_loss

    return _repeat(step, weights, config.num_local_steps)


def fed_avg_update(
    loss: Loss,
    weights: Weights,
    draw_batches: DrawBatches,
    config: config_lib.FedAvgConfig,
) -> LocalUpdate:
    """Takes tau SGD steps (FedAvg, arXiv 1602.05629, Algorithm 1, ClientUpdate).

    Args:
      loss: the user's loss.
      weights: w_k, the server's weights.
      draw_batches: gives one batch a step.
      config: rate, tau, batch size.
    """

    def step(number, weights):
        (batch,) = draw_batches(number, [config.batch_size])
        batch_loss, gradient = loss_and_gradient(loss, weights, batch)
        return descend(weights, gradient, config.learning_rate), batch_loss, batch_loss

    return _repeat(step, weights, config.num_local_steps)


def _repeat(step, weights: Weights, num_steps: int) -> LocalUpdate:
    """Runs `step` num_steps times, in a graph loop: short to trace whatever tau."""
    zero = tf.zeros([], weights[0].dtype)

    def body(number, weights, support_sum, query_sum):
        weights, support_loss, query_loss = step(number, weights)
        return number + 1, weights, support_sum + support_loss, query_sum + query_loss

    _, weights, support_sum, query_sum = tf.while_loop(
        lambda number, *_: number < num_steps,
        body,
        (tf.constant(0), [tf.convert_to_tensor(w) for w in weights], zero, zero),
        maximum_iterations=num_steps,
    )
    return LocalUpdate(list(weights), support_sum / num_steps, query_sum / num_steps)

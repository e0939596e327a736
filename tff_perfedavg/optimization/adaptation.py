"""Personalization: the gradient steps a user takes before using the model.

Graph code, like `meta_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.meta_gradient import (
    Loss,
    Scale,
    Weights,
    loss_and_gradient,
    subtract,
)

# The round numbers that key a user's draws; training rounds count from 0.
_STEPS, _CHOICE_OF_ROWS = -1, -2


def adaptation_batches(
    rows: batches.UserRows, seed: tf.Tensor, user: tf.Tensor, config: AdaptationConfig
) -> Callable[[tf.Tensor], Batch]:
    """Returns the batch of each of a user's adaptation steps.

    Args:
      rows: the user's adaptation rows.
      seed: int32 `[2]` from `batches.seed_pair`.
      user: int32 scalar, the user's number.
      config: how many rows there are, and how many a batch has.
    """

    def key(role):
        return batches.user_key(seed, tf.constant(role), user)

    if config.num_rows is not None:
        rows = batches.some_rows(rows, key(_CHOICE_OF_ROWS), config.num_rows)
    if config.batch_size is None:
        everything = batches.all_rows(rows)
        return lambda step: everything
    draw = batches.batch_source(
        rows, key(_STEPS), config.num_steps, [config.batch_size]
    )
    return lambda step: draw(step)[0]


def adapt(
    loss: Loss,
    weights: Weights,
    draw_batch: Callable[[tf.Tensor], Batch],
    inner_learning_rate,
    num_steps: int,
    measure: Callable[[Weights], tf.Tensor],
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Takes `num_steps` gradient steps and measures before and after each.

    Args:
      loss: the user's loss.
      weights: the starting point.
      draw_batch: from the int32 scalar step number to the batch of that step.
      inner_learning_rate: alpha.
      num_steps: m, at least 0.
      measure: from weights to a tensor of static shape `[...]`, on data of the
        user that `draw_batch` never returns.

    Returns:
      The adapted weights, and the measurements stacked to `[m + 1, ...]`: entry
      0 is before adapting, entry i after i steps.
    """
    weights = [tf.convert_to_tensor(w) for w in weights]
    first = measure(weights)
    measured = tf.TensorArray(
        first.dtype, num_steps + 1, element_shape=first.shape
    ).write(0, first)

    def body(number, weights, measured):
        _, weights = adapt_step(loss, weights, draw_batch(number), inner_learning_rate)
        return number + 1, weights, measured.write(number + 1, measure(weights))

    _, weights, measured = tf.while_loop(
        lambda number, *_: number < num_steps,
        body,
        (tf.constant(0), weights, measured),
        maximum_iterations=num_steps,
    )
    return list(weights), measured.stack()


def adapt_step(
    loss: Loss, weights: Weights, batch: Batch, inner_learning_rate: Scale
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Takes one gradient step.

    Returns:
      The loss before the step, a scalar, and the weights after it.
    """
    value, change = loss_and_gradient(loss, weights, batch, inner_learning_rate)
    return value, subtract(weights, change)

"""Personalization: the gradient steps a user takes before using the model.

Graph code, like `gradients`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.gradients import (
    Loss,
    Scale,
    Weights,
    loss_and_gradient,
    subtract,
)

_T = TypeVar("_T")

# The round numbers that key a user's draws; training rounds count from 0.
_STEPS, _CHOICE_OF_ROWS = -1, -2


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """How a user adapts a model: one value for training, evaluation and devices.

    Attributes:
      learning_rate: alpha, of every gradient step; a scalar tensor where a device
        decides.
      num_steps: m.
      num_trainable: how many of the last weight tensors move; None for all.
      batch_size: rows drawn afresh for every step; None for all the user has.
      num_rows: the most rows the user may use, drawn once; None for all.
    """

    learning_rate: Scale
    num_steps: int = 1
    num_trainable: int | None = None
    batch_size: int | None = None
    num_rows: int | None = None

    def build(self) -> Adaptation:
        """Returns itself: a value may stand where a configuration may."""
        return self

    def split(self, weights: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
        """Returns the weights that stay, and those that move."""
        if self.num_trainable is None:
            return [], weights
        return weights[: -self.num_trainable], weights[-self.num_trainable :]

    def step(
        self, loss: Loss, weights: Weights, batch: Batch
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Takes one gradient step.

        Returns:
          The loss before the step, a scalar, and the weights after it.
        """
        fixed, moving = self.split(weights)
        value, change = loss_and_gradient(
            lambda moved, rows: loss([*fixed, *moved], rows),
            moving,
            batch,
            self.learning_rate,
        )
        return value, [*fixed, *subtract(moving, change)]


def adaptation_batches(
    rows: batches.UserRows, seed: tf.Tensor, user: tf.Tensor, adaptation: Adaptation
) -> Callable[[tf.Tensor], Batch]:
    """Returns the batch of each of a user's adaptation steps.

    Args:
      rows: the user's adaptation rows.
      seed: int32 `[2]` from `batches.seed_pair`.
      user: int32 scalar, the user's number.
      adaptation: how many rows there are, and how many a batch has.
    """

    def key(role):
        return batches.user_key(seed, tf.constant(role), user)

    if adaptation.num_rows is not None:
        rows = batches.some_rows(rows, key(_CHOICE_OF_ROWS), adaptation.num_rows)
    if adaptation.batch_size is None:
        everything = batches.all_rows(rows)
        return lambda step: everything
    draw = batches.batch_source(
        rows, key(_STEPS), adaptation.num_steps, [adaptation.batch_size]
    )
    return lambda step: draw(step)[0]


def adapt(
    loss: Loss,
    weights: Weights,
    draw_batch: Callable[[tf.Tensor], Batch],
    adaptation: Adaptation,
    measure: Callable[[Weights], tf.Tensor],
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Takes the steps of an adaptation and measures before and after each.

    Args:
      loss: the user's loss.
      weights: the starting point.
      draw_batch: from the int32 scalar step number to the batch of that step.
      adaptation: the steps, m of them, at least 0.
      measure: from weights to a tensor of static shape `[...]`, on data of the
        user that `draw_batch` never returns.

    Returns:
      The adapted weights, and the measurements stacked to `[m + 1, ...]`: entry
      0 is before adapting, entry i after i steps.
    """
    num_steps = adaptation.num_steps
    weights = [tf.convert_to_tensor(w) for w in weights]
    first = measure(weights)
    measured = tf.TensorArray(
        first.dtype, num_steps + 1, element_shape=first.shape
    ).write(0, first)

    def body(number, weights, measured):
        _, weights = adaptation.step(loss, weights, draw_batch(number))
        return number + 1, weights, measured.write(number + 1, measure(weights))

    _, weights, measured = tf.while_loop(
        lambda number, *_: number < num_steps,
        body,
        (tf.constant(0), weights, measured),
        maximum_iterations=num_steps,
    )
    return list(weights), measured.stack()

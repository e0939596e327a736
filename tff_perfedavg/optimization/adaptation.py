"""Personalization: the gradient steps a user takes before using the model.

Graph code, like `gradients`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
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
from tff_perfedavg.optimization.learned_rates import LearnedRates
from tff_perfedavg.optimization.moves import EVERYTHING, Moves

# The round numbers that key a user's draws; training rounds count from 0.
_STEPS, _CHOICE_OF_ROWS = -1, -2


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Rule of adaptation: the gradient steps by which a user fine-tunes a model.

    One value for training, evaluation and devices.

    A step takes, of every tensor that moves,

        w <- w - a phi (g(w; D) + pull (w - w_start))

    The pull is that of Ditto's personal objective (Li et al., 2021, arXiv 2012.04221):
    a user's loss plus pull / 2 times the squared distance from the start.

    Attributes:
      learning_rate: alpha, of every gradient step; a scalar tensor where a device
        decides.
      num_steps: m.
      moves: which weight tensors move.
      pull: how strongly they are pulled back to where they started.
      batch_size: rows drawn afresh for every step; None for all the user has.
      num_rows: the most rows the user may use, drawn once; None for all.
      rows_per_class: whether that is of each class.
      learned: how learned rates stand in the parameters; None if there are none.
      factors: phi of each weight tensor, a scalar or shaped like it; None for 1.
    """

    learning_rate: Scale
    num_steps: int = 1
    moves: Moves = EVERYTHING
    pull: float = 0.0
    batch_size: int | None = None
    num_rows: int | None = None
    learned: LearnedRates | None = None
    factors: Weights | None = None
    rows_per_class: bool = False

    def build(self) -> Adaptation:
        """Returns itself: a value may stand where a configuration may."""
        return self

    def parameters(self, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the server's initial parameters: weights, then learned rates."""
        return [*weights, *(self.learned.initial(weights) if self.learned else ())]

    def of(self, parameters: Weights) -> tuple[Weights, Adaptation]:
        """Returns the model's weights, and the adaptation with its learned rates.

        Args:
          parameters: what the server holds.
        """
        if self.learned is None:
            return parameters, self
        weights, held = self.learned.split(parameters)
        factors = self.learned.factors(held)
        return weights, dataclasses.replace(self, learned=None, factors=factors)

    def change(
        self, loss: Loss, weights: Weights, batch: Batch, start: Weights
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns the loss and the update of one gradient step.

        Args:
          loss: the user's loss.
          weights: w, all tensors of the model.
          batch: D.
          start: where the pull is to, shaped like `weights`.

        Returns:
          The loss before the step, a scalar, and what the step subtracts from the
          tensors that move, shaped like these.
        """
        moving = self.moves.chosen(weights)
        restricted = self.moves.restrict(loss, weights)
        factors = None if self.factors is None else self.moves.chosen(self.factors)
        value, change = loss_and_gradient(
            restricted, moving, batch, self.learning_rate, factors
        )
        if self.pull:
            away = subtract(moving, self.moves.chosen(start))
            back = self.rated([self.pull * d for d in away])
            change = [c + b for c, b in zip(change, back, strict=True)]
        return value, change

    def rated(self, vectors: Weights) -> list[tf.Tensor]:
        """Returns vectors, shaped like the tensors that move, times their rates."""
        if self.factors is None:
            return [self.learning_rate * v for v in vectors]
        rates = [self.learning_rate * f for f in self.moves.chosen(self.factors)]
        return [r * v for r, v in zip(rates, vectors, strict=True)]

    def step(
        self,
        loss: Loss,
        weights: Weights,
        batch: Batch,
        start: Weights | None = None,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Takes one gradient step.

        Args:
          loss: the user's loss.
          weights: w.
          batch: D.
          start: where the weights are pulled to; by default where they are.

        Returns:
          The loss before the step, a scalar, and the weights after it.
        """
        value, change = self.change(loss, weights, batch, start or weights)
        moved = subtract(self.moves.chosen(weights), change)
        return value, self.moves.join(weights, moved)


def adaptation_rows(
    rows: batches.UserRows, seed: tf.Tensor, user: tf.Tensor, adaptation: Adaptation
) -> batches.UserRows:
    """Returns a subsample of a user's adaptation rows: those that it may use.

    Args:
      rows: all of them.
      seed: int32 `[2]` from `batches.seed_pair`.
      user: int32 scalar, the user's number.
      adaptation: how many there are.
    """
    if adaptation.num_rows is None:
        return rows
    key = batches.user_key(seed, tf.constant(_CHOICE_OF_ROWS), user)
    choose = batches.some_rows
    if adaptation.rows_per_class:
        choose = batches.some_rows_per_class
    return choose(rows, key, adaptation.num_rows)


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
    rows = adaptation_rows(rows, seed, user, adaptation)
    if adaptation.batch_size is None:
        everything = batches.all_rows(rows)
        return lambda step: everything
    key = batches.user_key(seed, tf.constant(_STEPS), user)
    draw = batches.batch_source(
        rows, key, adaptation.num_steps, [adaptation.batch_size]
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
      weights: the starting point: what the server holds, where rates are learned.
      draw_batch: from the int32 scalar step number to the batch of that step.
      adaptation: the steps, m of them, at least 0.
      measure: from weights to a tensor of static shape `[...]`, on data of the
        user that `draw_batch` never returns.

    Returns:
      The adapted weights, and the measurements stacked to `[m + 1, ...]`: entry
      0 is before adapting, entry i after i steps.
    """
    num_steps = adaptation.num_steps
    weights, adaptation = adaptation.of([tf.convert_to_tensor(w) for w in weights])
    start = weights = list(weights)
    first = measure(weights)
    measured = tf.TensorArray(
        first.dtype, num_steps + 1, element_shape=first.shape
    ).write(0, first)

    def body(
        number: tf.Tensor, weights: Weights, measured: tf.TensorArray
    ) -> tuple[tf.Tensor, Weights, tf.TensorArray]:
        _, weights = adaptation.step(loss, weights, draw_batch(number), start)
        return number + 1, weights, measured.write(number + 1, measure(weights))

    _, weights, measured = tf.while_loop(
        lambda number, *_: number < num_steps,
        body,
        (tf.constant(0), weights, measured),
        maximum_iterations=num_steps,
    )
    return list(weights), measured.stack()

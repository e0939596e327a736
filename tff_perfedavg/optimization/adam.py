"""Adam (Kingma and Ba, 2015) on tensors, and full-batch training by it.

Graph code, like `gradients`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.gradients import Loss, Weights, loss_and_gradient

# The paper's; its epsilon is for double precision.
_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-7
# Of training alone. The loss has stopped falling where so many steps together
# lower it by less than this share of what it was at the start.
LEARNING_RATE = 0.003
MOST_STEPS = 200
STEPS_BETWEEN_CHECKS, LEAST_FALL = 10, 0.01


class AdamState(NamedTuple):
    """Weights on their way.

    Attributes:
      number: int32 scalar, steps taken.
      weights: the weights.
      means: running means of their gradients.
      squares: running means of the gradients' squares.
    """

    number: tf.Tensor
    weights: Weights
    means: Weights
    squares: Weights


def start(weights: Weights) -> AdamState:
    """Returns the state before the first step."""
    weights = [tf.convert_to_tensor(w) for w in weights]
    zeros = [tf.zeros_like(w) for w in weights]
    return AdamState(tf.constant(0), weights, zeros, zeros)


def adam_step(state: AdamState, gradient: Weights, learning_rate: float) -> AdamState:
    """Returns the state after a step."""
    number = state.number + 1
    count = tf.cast(number, gradient[0].dtype)
    bias = tf.sqrt(1 - _SQUARE_DECAY**count) / (1 - _DECAY**count)
    means = [
        _DECAY * m + (1 - _DECAY) * g
        for m, g in zip(state.means, gradient, strict=True)
    ]
    squares = [
        _SQUARE_DECAY * s + (1 - _SQUARE_DECAY) * g * g
        for s, g in zip(state.squares, gradient, strict=True)
    ]
    weights = [
        w - learning_rate * bias * m / (tf.sqrt(s) + _EPSILON)
        for w, m, s in zip(state.weights, means, squares, strict=True)
    ]
    return AdamState(number, weights, means, squares)


def train_to_convergence(
    loss: Loss, weights: Weights, batch: Batch
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Trains on all rows in every step until the loss stops falling.

    That is where ten steps together lower the lowest loss so far by less than a
    hundredth of the loss at the start, and after 200 steps at the latest.

    Args:
      loss: the loss.
      weights: the starting point.
      batch: all rows.

    Returns:
      The weights of the lowest loss, and how many steps were taken, int32.
    """
    state = start(weights)
    initial = loss(state.weights, batch)

    def body(_, state, lowest, lowest_at_check, best):
        value, gradient = loss_and_gradient(loss, state.weights, batch)
        # Not where it is no number.
        is_lower = value < lowest
        best = [
            tf.where(is_lower, w, b) for w, b in zip(state.weights, best, strict=True)
        ]
        lowest = tf.where(is_lower, value, lowest)
        state = adam_step(state, gradient, LEARNING_RATE)
        at_check = tf.equal(state.number % STEPS_BETWEEN_CHECKS, 0)
        falls = lowest_at_check - lowest > LEAST_FALL * initial
        lowest_at_check = tf.where(at_check, lowest, lowest_at_check)
        return ~at_check | falls, state, lowest, lowest_at_check, best

    _, state, _, _, best = tf.while_loop(
        lambda goes_on, *_: goes_on,
        body,
        (tf.constant(True), state, initial, initial, state.weights),
        maximum_iterations=MOST_STEPS,
    )
    return list(best), state.number

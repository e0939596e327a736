"""Adam (Kingma and Ba, 2015) on tensors, and full-batch training by it.

Graph code, like `gradients`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.gradients import Loss, Scale, Weights, loss_and_gradient

# The paper's; its epsilon is for double precision.
_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-7
# Of training alone, chosen on images, sensor data and a noiseless regression: what ten
# times as many steps go on to is within a point of accuracy, and of a regressor's loss
# within a hundredth of what it was at the start.
LEARNING_RATE, LAST_LEARNING_RATE = 0.01, 0.001
# The loss has stopped falling where so many steps together lower it by less than this
# share of what it was before them.
STEPS_BETWEEN_CHECKS, LEAST_FALL = 100, 0.05
# There is nothing left to gain below this share of what it was at the start.
NEGLIGIBLE = 1e-4
MOST_STEPS = 3000


class AdamState(NamedTuple):
    """Adam's state: weights, and running moments of their gradients.

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


def adam_step(state: AdamState, gradient: Weights, learning_rate: Scale) -> AdamState:
    """Returns the state after one step of Adam.

    Args:
      state: before the step.
      gradient: of the loss, shaped like the weights.
      learning_rate: above 0; a number or a scalar tensor.
    """
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
    """Trains by full-batch Adam until the loss stops falling.

    The rate is 0.01, and a tenth of it from where a hundred steps together have lowered
    the lowest loss so far by less than 5 %; where that is so once more, training ends.
    It ends, too, where the loss is below a ten-thousandth of what it was at the start,
    and after 3000 steps at the latest.

    Args:
      loss: the loss, at least 0.
      weights: the starting point.
      batch: all rows.

    Returns:
      The weights of the lowest loss, and how many steps were taken, int32.
    """
    state = start(weights)
    initial = loss(state.weights, batch)
    rates = tf.constant([LEARNING_RATE, LAST_LEARNING_RATE])

    def goes_on(stops, state, lowest, *_):
        return (stops < rates.shape[0]) & (lowest > NEGLIGIBLE * initial)

    def body(stops, state, lowest, lowest_at_check, best):
        value, gradient = loss_and_gradient(loss, state.weights, batch)
        # Not where it is no number.
        is_lower = value < lowest
        best = [
            tf.where(is_lower, w, b) for w, b in zip(state.weights, best, strict=True)
        ]
        lowest = tf.where(is_lower, value, lowest)
        state = adam_step(state, gradient, rates[stops])
        at_check = tf.equal(state.number % STEPS_BETWEEN_CHECKS, 0)
        falls = lowest_at_check - lowest > LEAST_FALL * lowest_at_check
        lowest_at_check = tf.where(at_check, lowest, lowest_at_check)
        stops += tf.cast(at_check & ~falls, tf.int32)
        return stops, state, lowest, lowest_at_check, best

    _, state, _, _, best = tf.while_loop(
        goes_on,
        body,
        (tf.constant(0), state, initial, initial, state.weights),
        maximum_iterations=MOST_STEPS,
    )
    return list(best), state.number

"""Adaptation at whichever of several rates suits a user best. Graph code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.adaptation import Adaptation, adapt
from tff_perfedavg.optimization.gradients import Loss, Weights


def adapt_at_best_rate(
    loss: Loss,
    weights: Weights,
    draw_batch: Callable[[tf.Tensor], Batch],
    adaptation: Adaptation,
    learning_rates: Sequence[float],
    measure: Callable[[Weights], tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Adapts at every rate and keeps what one of them gave.

    Args:
      loss: as for `adapt`, and so the others.
      weights: the starting point.
      draw_batch: from the step number to that step's batch.
      adaptation: the steps, but for their rate.
      learning_rates: to choose from.
      measure: from weights to `[measures]`, the last of which is what the choice goes
        by: the lowest after the last step, the first of equals. It must be measured on
        rows that may choose.

    Returns:
      The measurements `[m + 1, measures]` at the rate chosen, and that rate.
    """
    rates = tf.constant(learning_rates, tf.float32)

    def at_rate(rate):
        steps = dataclasses.replace(adaptation, learning_rate=rate)
        return adapt(loss, weights, draw_batch, steps, measure)[1]

    measured = tf.map_fn(at_rate, rates, parallel_iterations=1)
    last = measured[:, -1, -1]
    chosen = tf.argmin(tf.where(tf.math.is_finite(last), last, np.inf))
    return measured[chosen], rates[chosen]

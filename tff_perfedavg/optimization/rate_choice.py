"""Learning-rate selection per user: adaptation at the best of several rates.

Graph code.
"""

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
    """Adapts at every rate of a grid, and keeps the best for each number of steps.

    So what is kept after m steps does not depend on how many more are taken.

    Args:
      loss: as for `adapt`, and so the others.
      weights: the starting point.
      draw_batch: from the step number to that step's batch.
      adaptation: the steps, m of them, but for their rate.
      learning_rates: to choose from.
      measure: from weights to `[measures]`, the last of which is what the choices go
        by: the lowest after as many steps, the first of equals. It must be measured on
        rows that may choose.

    Returns:
      The measurements `[m + 1, measures]`, each after so many steps at the rate chosen
      for them, and the rates `[m + 1]`.
    """
    rates = tf.constant(learning_rates, tf.float32)

    def at_rate(rate):
        steps = dataclasses.replace(adaptation, learning_rate=rate)
        return adapt(loss, weights, draw_batch, steps, measure)[1]

    measured = tf.map_fn(at_rate, rates, parallel_iterations=1)
    by = measured[:, :, -1]
    chosen = tf.argmin(tf.where(tf.math.is_finite(by), by, np.inf))
    by_step = tf.transpose(measured, [1, 0, 2])
    return tf.gather(by_step, chosen, batch_dims=1), tf.gather(rates, chosen)

"""Server optimizers: SGD with momentum, Adam, Yogi and Adagrad, as TFF has them."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg.experiments.settings import parts
from tff_perfedavg.experiments.settings.parts import ServerSettings


def build_server_optimizer(
    settings: ServerSettings, own_learning_rate: float
) -> tff.learning.optimizers.Optimizer:
    """Builds the server optimizer of the settings.

    Args:
      settings: what is asked for.
      own_learning_rate: the algorithm's, of plain SGD.
    """
    rate = settings.server_learning_rate
    if rate is None:
        rate = parts.ADAPTIVE_RATES.get(settings.server_optimizer, own_learning_rate)
    optimizer = _build_with_rate(settings, rate)
    decay_rounds = settings.server_decay_rounds
    if decay_rounds is None:
        return optimizer

    def decayed(round_num: Any) -> tf.Tensor:
        done = tf.minimum(tf.cast(round_num, tf.float32) / decay_rounds, 1.0)
        return rate * 0.5 * (1.0 + tf.cos(math.pi * done))

    return tff.learning.optimizers.schedule_learning_rate(optimizer, decayed)


def _build_with_rate(
    settings: ServerSettings, rate: float
) -> tff.learning.optimizers.Optimizer:
    optimizers = tff.learning.optimizers
    name = settings.server_optimizer
    if name == parts.SGDM:
        return optimizers.build_sgdm(rate, settings.server_momentum or None)
    given = {
        "beta_1": settings.server_beta_1,
        "beta_2": settings.server_beta_2,
        "epsilon": settings.server_epsilon,
    }
    builders = {
        parts.ADAM: optimizers.build_adam,
        parts.YOGI: optimizers.build_yogi,
        parts.ADAGRAD: optimizers.build_adagrad,
    }
    # What is not given has TFF's defaults.
    return builders[name](rate, **{k: v for k, v in given.items() if v is not None})

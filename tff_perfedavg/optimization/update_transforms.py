"""Transforms of one user's update before it is aggregated: norm clipping."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.optimization.gradients import global_norm


def clip_update(norm: float) -> Callable[[list[tf.Tensor]], list[tf.Tensor]]:
    """Returns a transform that clips an update to a Euclidean norm.

    Args:
      norm: the largest Euclidean norm over all tensors of an update, above 0.
    """
    if not norm > 0:
        raise errors.ConfigError(f"clip_update: norm is {norm}; it must be above 0.")

    def clip(update: list[tf.Tensor]) -> list[tf.Tensor]:
        # 1 for an update within the norm, one of zeros among them.
        scale = norm / tf.maximum(global_norm(update), norm)
        return [u * scale for u in update]

    return clip

"""A user's inner steps, and the gradient of the loss behind them.

With w_0 = w and m steps w_{j+1} = w_j - a phi (g(w_j; D) + pull (w_j - w_0)) of what
moves, the loss after them has the gradient (Finn et al., 2017, arXiv 1703.03400; for
several steps of Per-FedAvg, arXiv 2504.21327)

    v_m = g(w_m; D'),    v_j = v_{j+1} - (H(w_j) + pull) a phi v_{j+1},
    grad F(w) = v_0 + the sum over j of pull a phi v_{j+1}

and by the logarithms of the rates' factors phi (Meta-SGD, arXiv 1707.09835)

    grad F(log phi) = - the sum over j of (w_j - w_{j+1}) v_{j+1},

entry by entry, for a tensor's common rate summed over its entries: no further gradient
is evaluated. Graph code, like `gradients`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.gradients import (
    Loss,
    Scale,
    Weights,
    loss_and_gradient,
    subtract,
)
from tff_perfedavg.optimization.hessian import SUPPORT, Direction, HessianProduct


class MetaGradient(NamedTuple):
    """A gradient through a user's inner steps.

    Attributes:
      of_weights: by the initial weights.
      of_factors: by the logarithms of the rates' factors, shaped like these; None
        without factors.
      losses: `support_loss` before the first step, on the rows of the steps, and
        `query_loss` after the last, on rows of their own.
    """

    of_weights: list[tf.Tensor]
    of_factors: list[tf.Tensor] | None
    losses: dict[str, tf.Tensor]


def meta_gradient(
    loss: Loss,
    weights: Weights,
    batches: Mapping[str, Batch],
    inner: Adaptation,
    product: HessianProduct,
    scale: Scale = 1.0,
) -> MetaGradient:
    """Takes a user's inner steps, and the gradient of the loss behind them.

    Args:
      loss: the user's loss.
      weights: w.
      batches: rows by role: all inner steps take those of `support`.
      inner: the steps; their number is a Python number.
      product: how the Hessian is multiplied; the first-order one takes every v_j for
        v_m, and leaves the pull out.
      scale: the gradients are returned times this.
    """
    points, changes, losses = [list(weights)], [], []
    for _ in range(inner.num_steps):
        value, change = inner.change(loss, points[-1], batches[SUPPORT], weights)
        moved = subtract(inner.moves.chosen(points[-1]), change)
        points.append(inner.moves.join(points[-1], moved))
        changes.append(change)
        losses.append(value)
    query_loss, v = loss_and_gradient(loss, points[-1], batches["query"], scale)
    of_factors: list[tf.Tensor] | None = None
    pulled = []
    for point, change in zip(points[-2::-1], reversed(changes), strict=True):
        if inner.factors is not None:
            found = _of_factors(inner, change, v)
            of_factors = found if of_factors is None else _sum(of_factors, found)
        if product.role is not None:
            rows = batches[product.role]
            moving = inner.moves.chosen(v)
            direction = _direction(inner, moving, scale)
            v = subtract(v, product.times(loss, point, direction, rows))
            if inner.pull:
                back = [inner.pull * r for r in inner.rated(moving)]
                v = inner.moves.join(v, subtract(inner.moves.chosen(v), back))
                pulled.append(back)
    for back in pulled:
        v = inner.moves.join(v, _sum(inner.moves.chosen(v), back))
    return MetaGradient(
        v, of_factors, {"support_loss": losses[0], "query_loss": query_loss}
    )


def _direction(inner: Adaptation, moving: Weights, scale: Scale) -> Direction:
    """Returns a phi v, given v of what moves."""
    if inner.factors is None:
        return Direction(moving, inner.learning_rate, scale, inner.moves)
    return Direction(inner.rated(moving), 1.0, scale, inner.moves)


def _of_factors(inner: Adaptation, change: Weights, v: Weights) -> list[tf.Tensor]:
    """Returns one step's part of the gradient by log phi, zeros where nothing moves."""
    assert inner.factors is not None
    moving = inner.moves.chosen(inner.factors)
    parts = [
        -(tf.reduce_sum(c * d) if phi.shape.rank == 0 else c * d)
        for phi, c, d in zip(moving, change, inner.moves.chosen(v), strict=True)
    ]
    return inner.moves.join([tf.zeros_like(phi) for phi in inner.factors], parts)


def _sum(tensors: Weights, others: Weights) -> list[tf.Tensor]:
    return [t + o for t, o in zip(tensors, others, strict=True)]

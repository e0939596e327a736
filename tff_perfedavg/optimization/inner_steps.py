"""Meta-gradients: the gradient of the loss after a user's inner steps, as in MAML.

With w_0 = w and m steps w_{j+1} = w_j - a phi (g(w_j; D) + pull (w_j - w_0)) of what
moves, the loss after them has the gradient (Finn et al., 2017, arXiv 1703.03400; for
several steps of Per-FedAvg, arXiv 2504.21327)

    v_m = g(w_m; D'),    v_j = v_{j+1} - (H(w_j) + pull) a phi v_{j+1},
    grad F(w) = v_0 + the sum over j of pull a phi v_{j+1}

and by the rates' factors phi (Meta-SGD, arXiv 1707.09835)

    grad F(phi) = - the sum over j of (w_j - w_{j+1}) v_{j+1} / phi,

entry by entry, for a tensor's common rate summed over its entries: no further gradient
is evaluated. Graph code, like `gradients`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.gradients import (
    Loss,
    Scale,
    Weights,
    differentiable,
    gradient,
    loss_and_gradient,
    subtract,
)
from tff_perfedavg.optimization.hessian import SUPPORT, Direction, HessianProduct


class MetaGradient(NamedTuple):
    """A gradient through a user's inner steps.

    Attributes:
      of_weights: by the initial weights.
      of_factors: by the rates' factors, shaped like these; None without factors.
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
    """Returns the meta-gradient: that of the loss after a user's inner steps.

    Args:
      loss: the user's loss.
      weights: w.
      batches: rows by role: all inner steps take those of `support`.
      inner: the steps; their number is a Python number.
      product: how the Hessian is multiplied; the first-order one takes every v_j for
        v_m, and leaves the pull out. One that differentiates the steps has no vectors.
      scale: the gradients are returned times this.
    """
    if product.differentiates_steps:
        return _differentiated(loss, weights, batches, inner, scale)
    steps, end, support_loss = _walk(loss, weights, batches[SUPPORT], inner)
    query_loss, v = loss_and_gradient(loss, end, batches["query"], scale)
    of_factors: list[tf.Tensor] | None = None
    pulled = []
    for step in reversed(steps):
        moving = inner.moves.chosen(v)
        if inner.factors is not None:
            found = _of_factors(step, moving)
            of_factors = found if of_factors is None else _sum(of_factors, found)
        if product.role is not None:
            factors = inner.moves.chosen(step.factors) or None
            rate = inner.learning_rate
            direction = Direction(moving, rate, scale, inner.moves, factors)
            taken = product.times(loss, step.point, direction, batches[product.role])
            v = subtract(v, taken)
            if inner.pull:
                back = [inner.pull * r for r in inner.rated(moving)]
                v = inner.moves.join(v, subtract(inner.moves.chosen(v), back))
                pulled.append(back)
    for back in pulled:
        v = inner.moves.join(v, _sum(inner.moves.chosen(v), back))
    losses = {"support_loss": support_loss, "query_loss": query_loss}
    return MetaGradient(v, of_factors, losses)


class _Step(NamedTuple):
    """A recorded inner step: its point, its factors, its update of what moves."""

    point: list[tf.Tensor]
    factors: list[tf.Tensor]
    change: list[tf.Tensor]


def _walk(
    loss: Loss, start: Weights, support: Batch, inner: Adaptation
) -> tuple[list[_Step], list[tf.Tensor], tf.Tensor]:
    """Returns the steps, where they end, and the loss before them."""
    point, steps, losses = list(start), [], []
    for _ in range(inner.num_steps):
        factors = list(inner.factors or ())
        if inner.num_steps > 1:
            # Copies, since a derivative by them is of this step alone.
            factors = [tf.identity(f) for f in factors]
        own = dataclasses.replace(inner, factors=factors or None)
        value, change = own.change(loss, point, support, start)
        steps.append(_Step(point, factors, change))
        point = inner.moves.join(point, subtract(inner.moves.chosen(point), change))
        losses.append(value)
    return steps, point, losses[0]


def _differentiated(
    loss: Loss,
    weights: Weights,
    batches: Mapping[str, Batch],
    inner: Adaptation,
    scale: Scale,
) -> MetaGradient:
    """The gradient by differentiating the steps themselves, gradients and all."""
    with differentiable(with_gradients=True):
        start = [tf.identity(w) for w in weights]
        factors = list(inner.factors or ())
        _, end, support_loss = _walk(loss, start, batches[SUPPORT], inner)
        query_loss = loss(end, batches["query"])
        found = gradient(query_loss, [*start, *factors], scale)
    of_factors = found[len(start) :]
    losses = {"support_loss": support_loss, "query_loss": query_loss}
    return MetaGradient(found[: len(start)], of_factors or None, losses)


def _of_factors(step: _Step, v: Weights) -> list[tf.Tensor]:
    """Returns a step's part of the gradient by phi, given v of what moves."""
    # By the derivative: a product with the change would be another pass over all
    # weights for one number of each tensor.
    return [-s for s in gradient(step.change, step.factors, list(v))]


def _sum(tensors: Weights, others: Weights) -> list[tf.Tensor]:
    return [t + o for t, o in zip(tensors, others, strict=True)]

"""Hessian-vector products: how a meta-gradient follows the inner step's derivative.

The derivative of w - a g(w; D'') is I - a H(w; D''), symmetric. It multiplies the
gradient v after the inner step, in one of three ways (Fallah et al., 2020, arXiv
2002.07948, section 5). Graph code, like `gradients`, but that nothing is loaded to
choose one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tff_perfedavg import optimization
from tff_perfedavg.lazy import tf

if TYPE_CHECKING:
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.gradients import Loss, Scale, Weights

HESSIAN = "hessian"


class HessianProduct(NamedTuple):
    """One way to take a Hessian-vector product off a vector.

    Attributes:
      roles: names of the batches it takes.
      correct: from (loss, weights, vector v, batches by role, rate a, scale of v) to
        v - a H v, shaped like the weights.
    """

    roles: tuple[str, ...]
    correct: Callable[..., list[tf.Tensor]]


def first_order() -> HessianProduct:
    """Leaves the product out."""
    return HessianProduct((), lambda loss, weights, vector, *_: vector)


def exact() -> HessianProduct:
    """Differentiates <gradient, vector>."""

    def correct(loss, weights, vector, batches, rate, _):
        batch = batches[HESSIAN]
        product = hessian_vector_product(loss, weights, vector, batch, rate)
        return optimization.subtract(vector, product)

    return HessianProduct((HESSIAN,), correct)


def hessian_free(delta: float = 1e-2, normalized: bool = True) -> HessianProduct:
    """Takes the difference of two gradients, at w + e v and w - e v.

    Args:
      delta: the distance ||e v|| of both from w; if not `normalized`, e itself, as
        in the paper, of a v that is not scaled.
      normalized: keeps float32 differences accurate whatever the norm of v is.
    """

    def correct(loss, weights, vector, batches, rate, scale):
        if normalized:
            # No division by a zero norm: there, g(w) - g(w) = 0 whatever e is.
            norm = optimization.global_norm(vector)
            step = delta / tf.where(norm > 0, norm, tf.ones_like(norm))
        else:
            # The points are w +- delta v, and v comes scaled.
            step = tf.constant(delta / scale, vector[0].dtype)
        product = finite_difference_hessian_vector_product(
            loss, weights, vector, batches[HESSIAN], step, rate
        )
        return optimization.subtract(vector, product)

    return HessianProduct((HESSIAN,), correct)


def hessian_vector_product(
    loss: Loss, weights: Weights, vector: Weights, batch: Batch, scale: Scale = 1.0
) -> list[tf.Tensor]:
    """Returns scale H(weights; batch) vector, by differentiating <gradient, vector>."""
    with optimization.differentiable():
        _, of_loss = optimization.loss_and_gradient(loss, weights, batch, scale)
        return optimization.gradient(of_loss, weights, vector)


def finite_difference_hessian_vector_product(
    loss: Loss,
    weights: Weights,
    vector: Weights,
    batch: Batch,
    step: tf.Tensor,
    scale: Scale = 1.0,
) -> list[tf.Tensor]:
    """Returns scale [g(w + e v) - g(w - e v)] / (2 e), scale H v up to order e^2.

    Args:
      loss: the user's loss.
      weights: w.
      vector: v, shaped like the weights. A zero vector gives a zero product.
      batch: the rows both gradients are taken on.
      step: e, a scalar.
      scale: the product is returned times this.
    """
    shift = [step * v for v in vector]
    weight = scale / (2 * step)
    points = [w + s for w, s in zip(weights, shift, strict=True)]
    _, ahead = optimization.loss_and_gradient(loss, points, batch, weight)
    points = optimization.subtract(weights, shift)
    _, behind = optimization.loss_and_gradient(loss, points, batch, weight)
    return optimization.subtract(ahead, behind)

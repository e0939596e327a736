"""Hessian-vector products: exact, left out (first-order) or by finite differences.

The derivative of w - a g(w; D'') is I - a H(w; D''), symmetric. It multiplies the
gradient v after the inner step, in one of three ways (Fallah et al., 2020, arXiv
2002.07948, section 5). Graph code, like `gradients`, but that nothing is loaded to
choose one.

D'' is a sample of its own in the paper: the meta-gradient's mean is then that of the
loss after a step on the user's distribution. A user adapts on the rows D that it has,
and what it experiences is f(w - a g(w; D)): with D'' = D the meta-gradient is that
function's gradient, as MAML differentiates (Finn et al., 2017, arXiv 1703.03400).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tff_perfedavg import optimization
from tff_perfedavg.lazy import tf
from tff_perfedavg.optimization.moves import EVERYTHING, Moves

if TYPE_CHECKING:
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.gradients import Loss, Scale, Weights

EXACT, FIRST_ORDER, HESSIAN_FREE = "exact", "first_order", "hessian_free"
VARIANTS = (EXACT, FIRST_ORDER, HESSIAN_FREE)
SUPPORT, HESSIAN = "support", "hessian"
# Whose rows the product is taken on: a sample of its own, or the inner step's.
OWN_BATCH, SUPPORT_BATCH = "own", "support"
BATCHES = (OWN_BATCH, SUPPORT_BATCH)
_ROLE = {OWN_BATCH: HESSIAN, SUPPORT_BATCH: SUPPORT}


class Direction(NamedTuple):
    """The vector of a Hessian-vector product: factor times factors times `vector`.

    Attributes:
      vector: shaped like the weights of `moves`; zeros elsewhere.
      factor: one for all.
      scale: by which the vector comes scaled.
      moves: which weights the vector is shaped like.
      factors: one of each of these weights, scalars or shaped like it; None for 1.
    """

    vector: Weights
    factor: Scale = 1.0
    scale: Scale = 1.0
    moves: Moves = EVERYTHING
    factors: Weights | None = None


class HessianProduct(NamedTuple):
    """A form of the Hessian-vector product.

    Attributes:
      role: the batch it is taken on; None if there is no product.
      times: from (loss, weights, direction, batch) to the product, shaped like the
        weights.
      differentiates_steps: whether the product is not taken by itself, but the inner
        steps, whose rows are the same, are differentiated as they are computed.
    """

    role: str | None
    times: Callable[[Loss, Weights, Direction, Batch], list[tf.Tensor]]
    differentiates_steps: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the batches it takes beside the inner step's."""
        return (HESSIAN,) if self.role == HESSIAN else ()


def hessian_product(
    variant: str,
    batch: str = OWN_BATCH,
    delta: float = 1e-2,
    normalized: bool = True,
) -> HessianProduct:
    """Returns the form of Hessian-vector product of a variant.

    Args:
      variant: one of `VARIANTS`.
      batch: one of `BATCHES`.
      delta: of `hessian_free`.
      normalized: of `hessian_free`.
    """
    return {
        EXACT: exact(batch),
        FIRST_ORDER: first_order(),
        HESSIAN_FREE: hessian_free(delta, normalized, batch),
    }[variant]


def first_order() -> HessianProduct:
    """Returns the first-order form: no Hessian-vector product."""
    return HessianProduct(None, lambda *_: [])


def exact(batch: str = OWN_BATCH) -> HessianProduct:
    """Returns the exact form: Hessian-vector products by double reverse mode.

    It differentiates <gradient, vector> or, on their own rows, the inner steps.

    Args:
      batch: one of `BATCHES`.
    """

    def times(
        loss: Loss, weights: Weights, direction: Direction, batch: Batch
    ) -> list[tf.Tensor]:
        vector, factor, _, moves, factors = direction
        with optimization.differentiable():
            # Copies, or the derivative would go on to what a point was computed from.
            weights = [tf.identity(w) for w in weights]
            restricted, moving = moves.restrict(loss, weights), moves.chosen(weights)
            # The factors go in where differentiation starts, at the small end: over
            # the vector they would be another pass over all weights.
            _, of_loss = optimization.loss_and_gradient(
                restricted, moving, batch, factor, factors
            )
            return optimization.gradient(of_loss, weights, vector)

    return HessianProduct(_ROLE[batch], times, batch == SUPPORT_BATCH)


def hessian_free(
    delta: float = 1e-2, normalized: bool = True, batch: str = OWN_BATCH
) -> HessianProduct:
    """Returns the Hessian-free form: central finite differences of gradients.

    The two gradients are taken at w + e v and w - e v.

    Args:
      delta: the distance ||e v|| of both from w; if not `normalized`, e itself, as
        in the paper, of a v that is not scaled.
      normalized: keeps float32 differences accurate whatever the norm of v is.
      batch: one of `BATCHES`.
    """

    def times(
        loss: Loss, weights: Weights, direction: Direction, batch: Batch
    ) -> list[tf.Tensor]:
        vector, factor, scale, moves, factors = direction
        if factors is not None:
            vector = [f * v for f, v in zip(factors, vector, strict=True)]
        if normalized:
            # No division by a zero norm: there, g(w) - g(w) = 0 whatever e is.
            norm = optimization.global_norm(vector)
            step = delta / tf.where(norm > 0, norm, tf.ones_like(norm))
        else:
            # The points are w +- delta v, and v comes scaled; by 0, it is 0.
            scale = tf.convert_to_tensor(scale, vector[0].dtype)
            step = delta / tf.where(scale > 0, scale, tf.ones_like(scale))
        if not moves.are_all:
            vector = moves.join([tf.zeros_like(w) for w in weights], vector)
        return finite_difference_hessian_vector_product(
            loss, weights, vector, batch, step, factor
        )

    return HessianProduct(_ROLE[batch], times)


def hessian_vector_product(
    loss: Loss, weights: Weights, vector: Weights, batch: Batch, scale: Scale = 1.0
) -> list[tf.Tensor]:
    """Returns the exact Hessian-vector product, scale H(weights; batch) vector.

    Args:
      loss: the user's loss.
      weights: where the Hessian is taken.
      vector: shaped like the weights.
      batch: the rows.
      scale: the product is returned times this.

    Returns:
      Tensors shaped like the weights.
    """
    return exact().times(loss, weights, Direction(vector, scale), batch)


def finite_difference_hessian_vector_product(
    loss: Loss,
    weights: Weights,
    vector: Weights,
    batch: Batch,
    step: tf.Tensor,
    scale: Scale = 1.0,
) -> list[tf.Tensor]:
    """Returns the Hessian-vector product by central finite differences.

    It is scale [g(w + e v) - g(w - e v)] / (2 e), scale H v up to order e^2.

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

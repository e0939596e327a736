"""The gradient of the meta objective: Algorithm 1's inner line.

For a user with loss f, F(w) = f(w - a grad f(w)) and

    grad F(w) = (I - a Hessian f(w)) grad f(w - a grad f(w)).

Each of the three parts is estimated on a batch of its own (Fallah et al., 2020,
arXiv 2002.07948, eq. 7 and 8, section 5 for the two approximations):

    w~ = w - a g(w; D)      v = g(w~; D')      meta-gradient = v - a H(w; D'') v

Everything here is graph code: call it inside a `tf.function` or a
`tff.tensorflow.computation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization import config as config_lib

Weights = Sequence[tf.Tensor]
# From (weights, batch) to the scalar mean loss over the rows that count.
Loss = Callable[[Weights, Batch], tf.Tensor]


class MetaGradient(NamedTuple):
    """A meta-gradient and the losses met on the way.

    Attributes:
      gradient: tensors shaped like the weights.
      support_loss: scalar f(w; D), before the inner step.
      query_loss: scalar f(w~; D'), after it.
    """

    gradient: list[tf.Tensor]
    support_loss: tf.Tensor
    query_loss: tf.Tensor


def meta_gradient(
    loss: Loss,
    weights: Weights,
    support: Batch,
    query: Batch,
    hessian: Batch | None,
    config: config_lib.PerFedAvgConfig,
) -> MetaGradient:
    """Estimates grad F(weights) from three independent batches.

    Args:
      loss: the user's loss.
      weights: w, a sequence of floating-point tensors.
      support: D.
      query: D'.
      hessian: D''; `first_order` needs none.
      config: gives the inner learning rate and the variant.
    """
    inner_rate = config.inner_learning_rate
    support_loss, support_gradient = loss_and_gradient(loss, weights, support)
    adapted = descend(weights, support_gradient, inner_rate)
    query_loss, query_gradient = loss_and_gradient(loss, adapted, query)
    if config.variant == config_lib.FIRST_ORDER:
        gradient = query_gradient
    else:
        assert hessian is not None, f"{config.variant} needs a Hessian batch"
        if config.variant == config_lib.EXACT:
            product = hessian_vector_product(loss, weights, query_gradient, hessian)
        else:
            product = finite_difference_hessian_vector_product(
                loss,
                weights,
                query_gradient,
                hessian,
                delta=config.hessian_free_delta,
                normalized=config.hessian_free_normalized,
            )
        gradient = descend(query_gradient, product, inner_rate)
    return MetaGradient(gradient, support_loss, query_loss)


def hessian_vector_product(
    loss: Loss, weights: Weights, vector: Weights, batch: Batch
) -> list[tf.Tensor]:
    """Returns H(weights; batch) vector, by differentiating <gradient, vector>."""
    _, gradient = loss_and_gradient(loss, weights, batch)
    # The vector itself depends on the weights; its own derivative is no part of
    # the product.
    constant = [tf.stop_gradient(v) for v in vector]
    inner_product = tf.add_n(
        [tf.reduce_sum(g * v) for g, v in zip(gradient, constant, strict=True)]
    )
    return _gradient(inner_product, weights)


def finite_difference_hessian_vector_product(
    loss: Loss,
    weights: Weights,
    vector: Weights,
    batch: Batch,
    *,
    delta: float,
    normalized: bool,
) -> list[tf.Tensor]:
    """Returns [g(w + e v) - g(w - e v)] / (2 e), H v up to an error of order e^2.

    Args:
      loss: the user's loss.
      weights: w.
      vector: v, shaped like the weights. A zero vector gives a zero product.
      batch: the rows both gradients are taken on.
      delta: e itself, or e times the norm of v if `normalized`.
      normalized: whether e = delta / ||v||.
    """
    if normalized:
        # No division by a zero norm: there, g(w) - g(w) = 0 whatever e is.
        norm = global_norm(vector)
        step = delta / tf.where(norm > 0, norm, tf.ones_like(norm))
    else:
        step = tf.constant(delta, vector[0].dtype)
    _, ahead = loss_and_gradient(loss, descend(weights, vector, -step), batch)
    _, behind = loss_and_gradient(loss, descend(weights, vector, step), batch)
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def loss_and_gradient(
    loss: Loss, weights: Weights, batch: Batch
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the loss on a batch and its gradient, shaped like the weights."""
    # Copies, so that the gradient is taken at this point even where the weights
    # are themselves computed from tensors the loss also uses.
    weights = [tf.identity(w) for w in weights]
    value = loss(weights, batch)
    return value, _gradient(value, weights)


def global_norm(tensors: Weights) -> tf.Tensor:
    """Returns the Euclidean norm over all entries of all tensors, a scalar."""
    # Not tf.linalg.global_norm, whose operation cannot be vectorized over users.
    return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(t)) for t in tensors]))


def descend(weights: Weights, gradient: Weights, rate) -> list[tf.Tensor]:
    """Returns weights - rate * gradient."""
    return [w - rate * g for w, g in zip(weights, gradient, strict=True)]


def _gradient(value: tf.Tensor, weights: Weights) -> list[tf.Tensor]:
    # tf.gradients and not a tape: the device export replaces gradient functions
    # by graph, which tapes ignore. Not under its default name "gradients": there,
    # Grappler as TFF configures it would compute forward passes anew to save
    # memory, and fails at that inside loops.
    return tf.gradients(
        value,
        list(weights),
        name="derivative",
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )

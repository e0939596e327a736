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

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization import config as config_lib

Weights = Sequence[tf.Tensor]
# From (weights, batch) to the scalar mean loss over the rows that count.
Loss = Callable[[Weights, Batch], tf.Tensor]
# A factor: a Python number or a scalar tensor.
Scale: TypeAlias = float | tf.Tensor

_REPLACED: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar(
    "replaced_gradients", default=None
)


@contextlib.contextmanager
def replaced_gradients(overrides: Mapping[str, str]) -> Iterator[None]:
    """Differentiates with other gradient functions of operations than TensorFlow's.

    Within this context all functions of this package do, in whatever graph they are
    traced, bodies of loops included.

    Args:
      overrides: from an operation's type to the name under which the function is
        registered (`tf.RegisterGradient`).
    """
    token = _REPLACED.set(overrides)
    try:
        yield
    finally:
        _REPLACED.reset(token)


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
    scale: Scale = 1.0,
) -> MetaGradient:
    """Estimates grad F(weights) from three independent batches.

    Args:
      loss: the user's loss.
      weights: w, a sequence of floating-point tensors.
      support: D.
      query: D'.
      hessian: D''; `first_order` needs none.
      config: gives the inner learning rate and the variant.
      scale: the gradient is returned times this, for instance the outer learning
        rate.
    """
    inner_rate = config.inner_learning_rate
    support_loss, inner_step = loss_and_gradient(loss, weights, support, inner_rate)
    adapted = subtract(weights, inner_step)
    query_loss, query_gradient = loss_and_gradient(loss, adapted, query, scale)
    if config.variant == config_lib.FIRST_ORDER:
        return MetaGradient(query_gradient, support_loss, query_loss)
    assert hessian is not None, f"{config.variant} needs a Hessian batch"
    if config.variant == config_lib.EXACT:
        product = hessian_vector_product(
            loss, weights, query_gradient, hessian, scale=inner_rate
        )
    else:
        normalized = config.hessian_free_normalized
        product = finite_difference_hessian_vector_product(
            loss,
            weights,
            query_gradient,
            hessian,
            # The points are w +- delta v, and v comes scaled.
            delta=config.hessian_free_delta / (1.0 if normalized else scale),
            normalized=normalized,
            scale=inner_rate,
        )
    return MetaGradient(subtract(query_gradient, product), support_loss, query_loss)


def hessian_vector_product(
    loss: Loss, weights: Weights, vector: Weights, batch: Batch, scale: Scale = 1.0
) -> list[tf.Tensor]:
    """Returns scale H(weights; batch) vector, by differentiating <gradient, vector>."""
    with _differentiable():
        _, gradient = loss_and_gradient(loss, weights, batch, scale)
        return _gradient(gradient, weights, vector)


def finite_difference_hessian_vector_product(
    loss: Loss,
    weights: Weights,
    vector: Weights,
    batch: Batch,
    *,
    delta: Scale,
    normalized: bool,
    scale: Scale = 1.0,
) -> list[tf.Tensor]:
    """Returns scale [g(w + e v) - g(w - e v)] / (2 e), scale H v up to order e^2.

    Args:
      loss: the user's loss.
      weights: w.
      vector: v, shaped like the weights. A zero vector gives a zero product.
      batch: the rows both gradients are taken on.
      delta: e itself, or e times the norm of v if `normalized`.
      normalized: whether e = delta / ||v||.
      scale: the product is returned times this.
    """
    if normalized:
        # No division by a zero norm: there, g(w) - g(w) = 0 whatever e is.
        norm = global_norm(vector)
        step = delta / tf.where(norm > 0, norm, tf.ones_like(norm))
    else:
        step = tf.constant(delta, vector[0].dtype)
    shift = [step * v for v in vector]
    weight = scale / (2 * step)
    points = [w + s for w, s in zip(weights, shift, strict=True)]
    _, ahead = loss_and_gradient(loss, points, batch, weight)
    _, behind = loss_and_gradient(loss, subtract(weights, shift), batch, weight)
    return subtract(ahead, behind)


def loss_and_gradient(
    loss: Loss, weights: Weights, batch: Batch, scale: Scale = 1.0
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the loss on a batch and its gradient times scale, as the weights."""
    with _differentiable():
        # Copies, so that the gradient is taken at this point even where the weights
        # are themselves computed from tensors the loss also uses.
        weights = [tf.identity(w) for w in weights]
        value = loss(weights, batch)
        return value, _gradient(value, weights, scale)


def global_norm(tensors: Weights) -> tf.Tensor:
    """Returns the Euclidean norm over all entries of all tensors, a scalar."""
    # The operation of tf.linalg.global_norm does not vectorize over users, and a
    # product of a vector with itself takes ten times as long.
    return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(t)) for t in tensors]))


def subtract(weights: Weights, step: Weights) -> list[tf.Tensor]:
    """Returns weights - step."""
    return [w - s for w, s in zip(weights, step, strict=True)]


def _differentiable():
    """What is computed in this context has our gradients, or the replaced ones."""
    graph = tf.compat.v1.get_default_graph()
    return graph.gradient_override_map({**_own_gradients(), **(_REPLACED.get() or {})})


@tf.RegisterGradient("TffPerfedavgCrossEntropy")
def _cross_entropy(op, of_loss, of_derivative):
    """TensorFlow's own, but that a first derivative leaves out the second's part.

    TensorFlow sees by a mark on the tensor that nothing depends on the operation's
    derivative. Inside loops, zeros whose shape is known are constants without it. The
    mark is private; `_marks_zeros` looks whether it still means what it does here.
    """
    gradient = of_loss[:, tf.newaxis] * op.outputs[1]
    constant = tf.get_static_value(of_derivative)
    is_zero = constant is not None and not constant.any()
    if not is_zero and not getattr(of_derivative, "_is_zeros_tensor", False):
        shares = tf.nn.softmax(op.inputs[0])
        mean = tf.reduce_sum(of_derivative * shares, -1, keepdims=True)
        gradient += (of_derivative - mean) * shares
    return gradient, None


@functools.cache
def _own_gradients() -> dict[str, str]:
    """From an operation's type to the registered gradient function used for it."""
    if not _marks_zeros():
        return {}
    return {"SparseSoftmaxCrossEntropyWithLogits": "TffPerfedavgCrossEntropy"}


def _marks_zeros() -> bool:
    """Whether TensorFlow marks zeros, and nothing else, as we read it."""
    with tf.Graph().as_default():
        size = tf.compat.v1.placeholder(tf.float32, [None])
        zeros, ones = tf.zeros_like(size), tf.ones_like(size)
        marks = [getattr(t, "_is_zeros_tensor", None) for t in (zeros, ones)]
    return marks[0] is True and not marks[1]


def _gradient(value, weights: Weights, factor) -> list[tf.Tensor]:
    """Returns the gradient of <value, factor>, a factor's own dependence left out."""
    # The factor goes in where differentiation starts, at the small end of the graph:
    # a product with the gradient would be another pass over all weights.
    if not isinstance(factor, (list, tuple)):
        factor = tf.convert_to_tensor(factor, value.dtype)
    # tf.gradients and not a tape: the device export replaces gradient functions
    # by graph, which tapes ignore. Not under its default name "gradients": there,
    # Grappler as TFF configures it would compute forward passes anew to save
    # memory, and fails at that inside loops.
    gradients = tf.gradients(
        value,
        list(weights),
        grad_ys=factor,
        name="derivative",
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    # An embedding's is a slice of rows, which does not differentiate again.
    return [tf.convert_to_tensor(g) for g in gradients]

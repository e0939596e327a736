"""Gradients of losses in graph mode, and arithmetic on lists of weight tensors.

Everything here is graph code: call it inside a `tf.function` or a
`tff.tensorflow.computation`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import tensorflow as tf

from tff_perfedavg.models.model import Batch

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
    """Overrides the gradient functions of TensorFlow's operations in this context.

    All functions of this package heed it, in whatever graph they are traced, bodies of
    loops included.

    Args:
      overrides: from an operation's type to the name under which the function is
        registered (`tf.RegisterGradient`).
    """
    token = _REPLACED.set(overrides)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def loss_and_gradient(
    loss: Loss,
    weights: Weights,
    batch: Batch,
    scale: Scale = 1.0,
    scales: Weights | None = None,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the loss on a batch, and its gradient by the weights, times `scale`.

    Args:
      loss: the user's loss.
      weights: where the gradient is taken.
      batch: the rows.
      scale: of all tensors' gradients.
      scales: of each tensor's, besides: a scalar, or shaped like it; None for 1.
    """
    with differentiable():
        # Copies, so that the gradient is taken at this point even where the weights
        # are themselves computed from tensors the loss also uses.
        weights = [tf.identity(w) for w in weights]
        value = loss(weights, batch)
        if scales is None:
            return value, gradient(value, weights, scale)
        return value, _scaled_gradient(value, weights, scale, scales)


def _scaled_gradient(
    value: tf.Tensor, weights: Weights, scale: Scale, scales: Weights
) -> list[tf.Tensor]:
    """The gradient with a scale for each tensor.

    A kernel's gradient is the product of a layer's input and of the derivative by its
    output. A scale goes in there, at the small end: over the kernel it would cost as
    much as a step on it.
    """
    scales = [tf.convert_to_tensor(s) for s in scales]
    products = [
        _only_product(w) if s.shape.rank == 0 else None
        for w, s in zip(weights, scales, strict=True)
    ]
    points = [
        w if product is None else product.outputs[0]
        for w, product in zip(weights, products, strict=True)
    ]
    found = []
    derivatives = gradient(value, points, scale)
    for d, s, product in zip(derivatives, scales, products, strict=True):
        if s.shape.rank == 0:
            with tf.compat.v1.get_default_graph().gradient_override_map(
                {"Mul": "TffPerfedavgMulByScalar"}
            ):
                d = tf.multiply(s, d)
        else:
            d = s * d
        if product is not None:
            d = tf.matmul(product.inputs[0], d, transpose_a=True)
        found.append(d)
    return found


@tf.RegisterGradient("TffPerfedavgMulByScalar")
def _mul_by_scalar(
    op: tf.Operation, gradient: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient of multiplication by a scalar, without broadcast-shape inference."""
    scalar, tensor = op.inputs
    return tf.reduce_sum(tensor * gradient), scalar * gradient


def _only_product(weight: tf.Tensor) -> tf.Operation | None:
    """The matrix product x w that alone uses a weight, with TensorFlow's gradient.

    None if there is another use, or a gradient that a model has put in its place.
    """
    uses = weight.consumers()
    if len(uses) != 1 or uses[0].type != "MatMul":
        return None
    (product,) = uses
    if _has_own_gradient(product):
        return None
    is_transposed = product.get_attr("transpose_a") or product.get_attr("transpose_b")
    is_kernel = product.inputs[1] is weight and product.inputs[0] is not weight
    return product if is_kernel and not is_transposed else None


def _has_own_gradient(operation: tf.Operation) -> bool:
    """Whether an operation's gradient is not TensorFlow's (`gradient_override_map`)."""
    try:
        operation.get_attr("_gradient_op_type")
    except ValueError:
        return False
    return True


def global_norm(tensors: Weights) -> tf.Tensor:
    """Returns the Euclidean norm over all entries of all tensors, a scalar."""
    # The operation of tf.linalg.global_norm does not vectorize over users, and a
    # product of a vector with itself takes ten times as long.
    return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(t)) for t in tensors]))


def subtract(weights: Weights, step: Weights) -> list[tf.Tensor]:
    """Returns weights - step, tensor by tensor.

    Args:
      weights: tensors of any shapes.
      step: tensors shaped like the weights, as many.
    """
    return [w - s for w, s in zip(weights, step, strict=True)]


def differentiable(
    with_gradients: bool = False,
) -> contextlib.AbstractContextManager[None]:
    """Returns a context whose operations get our gradients, or the replaced ones.

    Args:
      with_gradients: whether what is differentiated are steps along gradients.
    """
    own = {**_own_gradients(), **(_OF_STEPS if with_gradients else {})}
    graph = tf.compat.v1.get_default_graph()
    context: contextlib.AbstractContextManager[None]
    context = graph.gradient_override_map({**own, **(_REPLACED.get() or {})})
    return context


# oneDNN fuses the gradients of a bias and of its convolution's kernel into one
# operation. Where a step along both is differentiated, it takes a second derivative for
# the kernel's, and what it then makes is a graph with a cycle, which does not run.
_OF_STEPS = {"BiasAdd": "TffPerfedavgBiasAddOfSteps"}


@tf.RegisterGradient("TffPerfedavgBiasAddOfSteps")
def _bias_add(op: tf.Operation, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient of BiasAdd as a plain sum, differentiable inside loops."""
    channels = 1 if op.get_attr("data_format") == b"NCHW" else gradient.shape.rank - 1
    others = [axis for axis in range(gradient.shape.rank) if axis != channels]
    return gradient, tf.reduce_sum(gradient, others)


@tf.RegisterGradient("TffPerfedavgCrossEntropy")
def _cross_entropy(
    op: tf.Operation, of_loss: tf.Tensor, of_derivative: tf.Tensor
) -> tuple[tf.Tensor, None]:
    """Gradient of the softmax cross-entropy that leaves unused second-order terms out.

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


@tf.RegisterGradient("TffPerfedavgSoftsignTwice")
def _softsign(op: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
    """Gradient of softsign, twice differentiable."""
    return gradient / tf.square(1 + tf.abs(op.inputs[0]))


@functools.cache
def _own_gradients() -> dict[str, str]:
    """From an operation's type to the registered gradient function used for it."""
    own = {"Softsign": "TffPerfedavgSoftsignTwice"}
    if _marks_zeros():
        own["SparseSoftmaxCrossEntropyWithLogits"] = "TffPerfedavgCrossEntropy"
    return own


def _marks_zeros() -> bool:
    """Whether TensorFlow marks zeros, and nothing else, as we read it."""
    with tf.Graph().as_default():
        size = tf.compat.v1.placeholder(tf.float32, [None])
        zeros, ones = tf.zeros_like(size), tf.ones_like(size)
        marks = [getattr(t, "_is_zeros_tensor", None) for t in (zeros, ones)]
    return marks[0] is True and not marks[1]


@overload
def gradient(value: Weights, weights: Weights, factor: Weights) -> list[tf.Tensor]: ...
@overload
def gradient(value: tf.Tensor, weights: Weights, factor: Scale) -> list[tf.Tensor]: ...
def gradient(value: Any, weights: Weights, factor: Scale | Weights) -> list[tf.Tensor]:
    """Returns the vector-Jacobian product: the gradient of <value, factor>.

    A factor's own dependence on the weights is left out.

    Args:
      value: a scalar, or tensors.
      weights: what the gradient is by.
      factor: a scalar, or tensors shaped like the value.

    Returns:
      Tensors shaped like the weights; zeros where the value does not depend on one.
    """
    # The factor goes in where differentiation starts, at the small end of the graph:
    # a product with the gradient would be another pass over all weights.
    if not isinstance(factor, (list, tuple)):
        factor = tf.convert_to_tensor(factor, value.dtype)
    if replaced := _REPLACED.get():
        _let_calls_be_replaced(tf.compat.v1.get_default_graph(), replaced)
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


def _let_calls_be_replaced(graph: tf.Graph, replaced: Mapping[str, str]) -> None:
    """Has called functions differentiated by the replacement, where there is one.

    A `tf.function` that a layer calls brings a gradient of its own along, which goes
    before those of the graph. The attribute that holds it is private.
    """
    for operation in graph.get_operations():
        if operation.type in _CALLS and operation.type in replaced:
            operation._gradient_function = None


_CALLS = ("PartitionedCall", "StatefulPartitionedCall")

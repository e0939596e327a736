"""Replacement gradients of element-wise functions, normalization and bias."""

from __future__ import annotations

import tensorflow as tf

from tff_perfedavg.ondevice.gradients.registry import check, replaces
from tff_perfedavg.ondevice.gradients.shapes import summed_to

# Of selu (Klambauer et al., 2017, arXiv 1706.02515, section 2): lambda, and
# lambda times alpha.
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_SCALE_ALPHA = 1.7580993408473768599402175208123


def _as_one_or_zero(condition: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(condition, like.dtype)


@replaces("Elu")
def _elu(op, dy):
    # exp(x) = elu(x) + 1 where x < 0.
    return dy * (tf.minimum(op.outputs[0], 0.0) + 1.0)


@replaces("Selu")
def _selu(op, dy):
    y = op.outputs[0]
    is_negative = _as_one_or_zero(y < 0.0, dy)
    of_negative = tf.minimum(y, 0.0) + _SELU_SCALE_ALPHA
    return dy * (_SELU_SCALE + is_negative * (of_negative - _SELU_SCALE))


@replaces("Relu")
def _relu(op, dy):
    return dy * _as_one_or_zero(op.outputs[0] > 0.0, dy)


@replaces("Relu6")
def _relu6(op, dy):
    y = op.outputs[0]
    return dy * _as_one_or_zero(tf.logical_and(y > 0.0, y < 6.0), dy)


@replaces("LeakyRelu")
def _leaky_relu(op, dy):
    positive = _as_one_or_zero(op.inputs[0] > 0.0, dy)
    return dy * (positive + op.get_attr("alpha") * (1.0 - positive))


@replaces("Sigmoid")
def _sigmoid(op, dy):
    y = op.outputs[0]
    return dy * (y * (1.0 - y))


@replaces("Softplus")
def _softplus(op, dy):
    return dy * tf.sigmoid(op.inputs[0])


@replaces("Tanh")
def _tanh(op, dy):
    return dy * (1.0 - tf.square(op.outputs[0]))


@replaces("Sqrt")
def _sqrt(op, dy):
    return dy * (0.5 / op.outputs[0])


@replaces("Rsqrt")
def _rsqrt(op, dy):
    y = op.outputs[0]
    return dy * (-0.5 * y * y * y)


@replaces("Maximum")
def _maximum(op, dy):
    # TensorFlow's would store zeros of the size of the inputs in the file.
    return _to_the_chosen(op, dy, op.inputs[0] >= op.inputs[1])


@replaces("Minimum")
def _minimum(op, dy):
    return _to_the_chosen(op, dy, op.inputs[0] <= op.inputs[1])


def _to_the_chosen(op, dy, is_first: tf.Tensor):
    chosen = dy * _as_one_or_zero(is_first, dy)
    parts = zip((chosen, dy - chosen), op.inputs, strict=True)
    return [summed_to(part, x.shape) for part, x in parts]


@replaces("FusedBatchNormV3")
def _batch_norm(op, dy, *_):
    """The gradient of a normalization by stored or by the batch's statistics."""
    if op.get_attr("is_training"):
        return _norm_by_batch(op, dy)
    check(op, op.get_attr("data_format") == b"NHWC", "has channels first")
    x, scale, _, mean, variance = op.inputs
    inverse = tf.math.rsqrt(variance + op.get_attr("epsilon"))
    to_scale = tf.reduce_sum(dy * ((x - mean) * inverse), [0, 1, 2])
    to_offset = tf.reduce_sum(dy, [0, 1, 2])
    return dy * (scale * inverse), to_scale, to_offset, None, None


def _norm_by_batch(op, dy):
    """Gradient of fused batch normalization as used by LayerNormalization."""
    x, scale = op.inputs[:2]
    axes = [0, 1, 2] if op.get_attr("data_format") == b"NHWC" else [0, 2, 3]
    shape = [1 if axis in axes else -1 for axis in range(4)]

    def mean(t):
        return tf.reduce_mean(t, axes, keepdims=True)

    centered = x - mean(x)
    variance = mean(tf.square(centered))
    inverse = tf.math.rsqrt(variance + op.get_attr("epsilon"))
    normal = centered * inverse
    to_normal = dy * tf.reshape(scale, shape)
    to_x = inverse * (to_normal - mean(to_normal) - normal * mean(to_normal * normal))
    to_scale = tf.reduce_sum(dy * normal, axes)
    return to_x, to_scale, tf.reduce_sum(dy, axes), None, None


@replaces("BiasAdd")
def _bias_add(op, dy):
    check(op, op.get_attr("data_format") == b"NHWC", "has channels first")
    return dy, tf.reduce_sum(dy, list(range(dy.shape.rank - 1)))

"""The gradients of the device are TensorFlow's own, first and second."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import relative_error
from tff_perfedavg.ondevice import gradients
from tff_perfedavg.ondevice.supported import _all_operations, _is_convertible
from tff_perfedavg.optimization.gradients import (
    differentiable,
    gradient,
    replaced_gradients,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def conv(strides, padding):
    return lambda x, w: tf.nn.conv2d(x, w, strides, padding)


def dilated(padding, dilations):
    return lambda x, w: tf.nn.conv2d(x, w, 1, padding, dilations=dilations)


def conv3d(strides, padding):
    return lambda x, w: tf.nn.conv3d(x, w, [1, *strides, 1], padding)


def depthwise(padding, stride=1, dilations=None):
    strides = [1, stride, stride, 1]
    return lambda x, w: tf.nn.depthwise_conv2d(
        x, w, strides, padding, dilations=dilations
    )


def pool(function, padding="VALID", window=(2, 3), strides=(2, 3)):
    return lambda x: function(x, window, strides, padding)


def norm_by_batch(data_format):
    def norm(x, scale, offset):
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(
            *(tf.cast(t, tf.float32) for t in (x, scale, offset)),
            data_format=data_format,
        )
        return tf.cast(y, tf.float64)

    return norm


@tf.function(autograph=False)
def called(x, w):
    """As a layer may call what it computes."""
    return tf.nn.elu(tf.nn.conv2d(x, w, 1, "VALID"))


def frozen_norm(x, scale, offset):
    mean, variance = normal(3, seed=5), np.abs(normal(3, seed=6)) + 0.1
    as_float = [tf.constant(t, tf.float32) for t in (mean, variance)]
    y, _, _ = tf.compat.v1.nn.fused_batch_norm(
        tf.cast(x, tf.float32),
        tf.cast(scale, tf.float32),
        tf.cast(offset, tf.float32),
        *as_float,
        is_training=False,
    )
    return tf.cast(y, tf.float64)


IMAGE = normal(2, 8, 9, 3)
KERNEL = normal(3, 2, 3, 4, seed=1)
CUBE = normal(2, 4, 5, 6, 2)
# Computed in float32, in which TensorFlow's normalizations alone are.
SINGLE = {"frozen norm", "norm by batch", "norm by rows"}
# A function and where it is differentiated.
CASES = {
    "elu": (tf.nn.elu, [normal(5, 4)]),
    "relu": (tf.nn.relu, [normal(5, 4)]),
    "relu6": (tf.nn.relu6, [4 * normal(5, 4)]),
    "leaky_relu": (lambda x: tf.nn.leaky_relu(x, 0.3), [normal(5, 4)]),
    "sigmoid": (tf.sigmoid, [normal(5, 4)]),
    "tanh": (tf.tanh, [normal(5, 4)]),
    "sqrt": (tf.sqrt, [np.abs(normal(5)) + 0.1]),
    "rsqrt": (tf.math.rsqrt, [np.abs(normal(5)) + 0.1]),
    "maximum": (tf.maximum, [normal(4, 3), normal(3, seed=1)]),
    "minimum": (tf.minimum, [normal(4, 1), normal(2, 4, 3, seed=1)]),
    "bias": (tf.nn.bias_add, [IMAGE, normal(3)]),
    "mean": (lambda x: tf.reduce_mean(x**2, [1, 2]), [IMAGE]),
    "sum": (lambda x: tf.reduce_sum(x**2, 0, keepdims=True), [normal(4, 3)]),
    "slice": (lambda x: x[:, 1:-2, 3:] ** 2, [IMAGE]),
    "index": (lambda x: x[:, -1, 1:4] ** 2, [normal(3, 4, 5)]),
    "embedding": (lambda t: tf.gather(t, [[0, 2], [2, 4]]) ** 2, [normal(5, 3)]),
    "conv": (conv(1, "SAME"), [IMAGE, KERNEL]),
    "conv valid": (conv(1, "VALID"), [IMAGE, KERNEL]),
    "conv strided": (conv([2, 3], "SAME"), [IMAGE, KERNEL]),
    "conv strided valid": (conv([3, 2], "VALID"), [IMAGE, KERNEL]),
    "conv transposed": (
        lambda dy, w: tf.nn.conv2d_transpose(dy, w, [2, 8, 9, 3], [2, 2], "SAME"),
        [normal(2, 4, 5, 4), KERNEL],
    ),
    "conv dilated": (dilated("SAME", [2, 3]), [IMAGE, KERNEL]),
    "conv dilated valid": (dilated("VALID", [1, 2]), [IMAGE, KERNEL]),
    "conv grouped": (conv(1, "SAME"), [IMAGE, normal(3, 2, 1, 6, seed=1)]),
    "conv 3d": (conv3d([1, 1, 1], "SAME"), [CUBE, normal(2, 3, 2, 2, 3, seed=1)]),
    "conv 3d strided": (conv3d([2, 2, 2], "SAME"), [CUBE, normal(3, 3, 2, 2, 3)]),
    "conv 3d strided valid": (
        conv3d([3, 1, 2], "VALID"),
        [CUBE, normal(2, 2, 2, 2, 3)],
    ),
    "depthwise": (depthwise("SAME"), [IMAGE, normal(3, 2, 3, 1)]),
    "depthwise multiplied": (depthwise("VALID"), [IMAGE, normal(2, 3, 3, 2)]),
    "depthwise strided": (depthwise("SAME", 2), [IMAGE, normal(3, 3, 3, 1)]),
    "depthwise strided valid": (depthwise("VALID", 2), [IMAGE, normal(3, 2, 3, 2)]),
    "depthwise skipping": (depthwise("VALID", 3), [IMAGE, normal(2, 1, 3, 1)]),
    "depthwise skipping same": (depthwise("SAME", 3), [IMAGE, normal(1, 2, 3, 1)]),
    "depthwise dilated": (depthwise("SAME", 1, [2, 2]), [IMAGE, normal(3, 2, 3, 1)]),
    "max pool": (pool(tf.nn.max_pool2d), [IMAGE]),
    "max pool padded": (pool(tf.nn.max_pool2d, "SAME", 3, 2), [IMAGE]),
    "max pool overlapping": (pool(tf.nn.max_pool2d, "VALID", (3, 2), (1, 2)), [IMAGE]),
    "max pool skipping": (pool(tf.nn.max_pool2d, "VALID", 2, 3), [IMAGE]),
    "average pool": (pool(tf.nn.avg_pool2d), [IMAGE]),
    "average pool padded": (pool(tf.nn.avg_pool2d, "SAME", 3, 2), [IMAGE]),
    "average pool overlapping": (pool(tf.nn.avg_pool2d, "VALID", 3, 1), [IMAGE]),
    "slice with steps": (lambda x: x[:, 1:-2:3, ::2] ** 2, [IMAGE]),
    "slice to the end": (lambda x: x[:, 2::3, 1::4, ::2] ** 2, [IMAGE]),
    "selu": (tf.nn.selu, [normal(5, 4)]),
    "softplus": (tf.nn.softplus, [normal(5, 4)]),
    "softsign": (tf.nn.softsign, [normal(5, 4)]),
    "exact gelu": (tf.nn.gelu, [normal(5, 4)]),
    "reverse": (lambda x: tf.reverse(x, [1]) ** 2 * normal(8, 9, 3), [IMAGE]),
    "split": (lambda x: tf.split(x, [2, 4, 3], 2)[1] ** 2, [IMAGE]),
    "einsum": (
        lambda x, w: tf.einsum("abcd,cde->abe", x, w),
        [normal(2, 3, 4, 5), normal(4, 5, 3, seed=1)],
    ),
    "space to batch": (
        lambda x: tf.space_to_batch(x, [2, 3], [[1, 1], [0, 0]]) ** 2,
        [IMAGE],
    ),
    "sum of six axes": (
        lambda x: tf.reduce_sum(x**2, [1, 3, 5]),
        [normal(2, 2, 3, 2, 2, 2)],
    ),
    "norm by batch": (norm_by_batch("NHWC"), [IMAGE, normal(3), normal(3, seed=1)]),
    "norm by rows": (
        norm_by_batch("NCHW"),
        [normal(1, 4, 5, 1), normal(4), normal(4, seed=1)],
    ),
    "called": (called, [IMAGE, KERNEL]),
    "frozen norm": (frozen_norm, [IMAGE, normal(3), normal(3, seed=1)]),
}


# What TensorFlow differentiates where it cannot the function itself: dilated
# convolutions on this processor, and softsign a second time.
EQUIVALENTS = {
    "conv dilated": lambda x, w: tf.nn.conv2d(x, with_zeros(w, 2, 3), 1, "SAME"),
    "conv dilated valid": lambda x, w: tf.nn.conv2d(x, with_zeros(w, 1, 2), 1, "VALID"),
    "conv grouped": lambda x, w: tf.concat(
        [
            tf.nn.conv2d(x[..., g : g + 1], w[..., 2 * g : 2 * g + 2], 1, "SAME")
            for g in range(3)
        ],
        -1,
    ),
    "softsign": lambda x: x / (1 + tf.abs(x)),
}


def with_zeros(w, down, right):
    """A filter with zeros between its entries."""
    height, width = w.shape[:2]
    rows = tf.scatter_nd(
        [[i * down] for i in range(height)], w, [(height - 1) * down + 1, *w.shape[1:]]
    )
    columns = tf.scatter_nd(
        [[j * right] for j in range(width)],
        tf.transpose(rows, [1, 0, 2, 3]),
        [(width - 1) * right + 1, rows.shape[0], *w.shape[2:]],
    )
    return tf.transpose(columns, [1, 0, 2, 3])


def derivatives(function, points, overrides):
    """Gradient of a nonlinear scalar, and the gradient of <gradient, directions>."""

    @tf.function(autograph=False)
    def compute():
        with replaced_gradients(overrides), differentiable():
            at = [tf.constant(p) for p in points]
            y = function(*at)
            value = tf.reduce_sum(y**3 * normal(*y.shape, seed=7))
            first = gradient(value, at, 1.0)
            directions = [normal(*p.shape, seed=8) for p in points]
            return first, gradient(first, at, directions)

    return compute


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_are_tensorflows(name):
    function, points = CASES[name]
    first, second = derivatives(EQUIVALENTS.get(name, function), points, {})()
    ours, ours_again = derivatives(*CASES[name], gradients.OVERRIDES)()
    tolerance = 1e-5 if name in SINGLE else 1e-12
    assert relative_error(ours, first) < tolerance
    assert relative_error(ours_again, second) < tolerance


def test_of_equal_entries_in_a_window_the_first_takes_the_gradient():
    x = np.ones([1, 2, 3, 1])
    first, _ = derivatives(pool(tf.nn.max_pool2d), [x], {})()
    ours, _ = derivatives(pool(tf.nn.max_pool2d), [x], gradients.OVERRIDES)()
    assert np.array_equal(first[0], ours[0])
    assert np.count_nonzero(ours[0]) == 1


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_made_of_operations_a_device_has(name):
    compute = derivatives(*CASES[name], gradients.OVERRIDES)
    operations = list(_all_operations(compute.get_concrete_function()))
    assert [o.type for o, _ in operations if not _is_convertible(o)] == []


def test_replacements_hold_inside_loops_and_end_with_their_context():
    from tff_perfedavg.optimization.gradients import loss_and_gradient

    def types(overrides):
        @tf.function(autograph=False)
        def compute():
            def body(number, w):
                _, step = loss_and_gradient(
                    lambda weights, _: tf.reduce_sum(tf.nn.elu(weights[0])), [w], None
                )
                return number + 1, w - step[0]

            with replaced_gradients(overrides):
                return tf.while_loop(
                    lambda number, _: number < 3, body, (0, tf.ones([2]))
                )

        found = _all_operations(compute.get_concrete_function())
        return {operation.type for operation, _ in found}

    assert "EluGrad" not in types(gradients.OVERRIDES)
    assert "EluGrad" in types({})

"""The gradients of the device are TensorFlow's own, first and second."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import relative_error
from tff_perfedavg.ondevice import gradients
from tff_perfedavg.ondevice.supported import _all_operations, _is_convertible
from tff_perfedavg.optimization.gradients import replaced_gradients


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def conv(strides, padding):
    return lambda x, w: tf.nn.conv2d(x, w, strides, padding)


def depthwise(padding):
    return lambda x, w: tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], padding)


def pool(function, padding="VALID"):
    return lambda x: function(x, [2, 3], [2, 3], padding)


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
    "depthwise": (depthwise("SAME"), [IMAGE, normal(3, 2, 3, 1)]),
    "depthwise multiplied": (depthwise("VALID"), [IMAGE, normal(2, 3, 3, 2)]),
    "max pool": (pool(tf.nn.max_pool2d), [IMAGE]),
    "average pool": (pool(tf.nn.avg_pool2d), [IMAGE]),
    "frozen norm": (frozen_norm, [IMAGE, normal(3), normal(3, seed=1)]),
}


def dense(tensors):
    """Of an embedding, gradients are slices of rows."""
    return [tf.convert_to_tensor(t) for t in tensors]


def derivatives(function, points, overrides):
    """Gradient of a nonlinear scalar, and the gradient of <gradient, directions>."""

    @tf.function(autograph=False)
    def compute():
        with tf.compat.v1.get_default_graph().gradient_override_map(overrides):
            at = [tf.constant(p) for p in points]
            y = function(*at)
            value = tf.reduce_sum(y**3 * normal(*y.shape, seed=7))
            first = dense(tf.gradients(value, at))
            directions = [normal(*p.shape, seed=8) for p in points]
            return first, dense(tf.gradients(first, at, directions))

    return compute


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_are_tensorflows(name):
    first, second = derivatives(*CASES[name], {})()
    ours, ours_again = derivatives(*CASES[name], gradients.OVERRIDES)()
    # The frozen normalization computes in float32.
    tolerance = 1e-5 if name == "frozen norm" else 1e-12
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

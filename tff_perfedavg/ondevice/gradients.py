"""Gradients made of operations that every TensorFlow Lite runtime has.

TensorFlow's own gradient functions use operations such as `EluGrad` or
`Conv2DBackpropFilter` that a phone's runtime lacks. Here each is written with built-in
operations, whose gradients are built in again: meta-gradients differentiate twice.
Each replacement computes the same number as the original, to rounding.
"""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors

_PREFIX = "TffPerfedavg"
FREEZE = "freeze the weights up to it (ExportConfig.num_trainable)"
# From an operation's type to the registered name of its replacement gradient; for
# optimization.gradients.replaced_gradients.
OVERRIDES: dict[str, str] = {}


def _replaces(op_type: str):
    """Registers a function as the replacement gradient of an operation type."""

    def register(function):
        name = f"{_PREFIX}{op_type}"
        tf.RegisterGradient(name)(function)
        OVERRIDES[op_type] = name
        return function

    return register


def _as_one_or_zero(condition: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(condition, like.dtype)


@_replaces("Elu")
def _elu(op, dy):
    # exp(x) = elu(x) + 1 where x < 0.
    return dy * (tf.minimum(op.outputs[0], 0.0) + 1.0)


@_replaces("Relu")
def _relu(op, dy):
    return dy * _as_one_or_zero(op.outputs[0] > 0.0, dy)


@_replaces("Relu6")
def _relu6(op, dy):
    y = op.outputs[0]
    return dy * _as_one_or_zero(tf.logical_and(y > 0.0, y < 6.0), dy)


@_replaces("LeakyRelu")
def _leaky_relu(op, dy):
    positive = _as_one_or_zero(op.inputs[0] > 0.0, dy)
    return dy * (positive + op.get_attr("alpha") * (1.0 - positive))


@_replaces("Sigmoid")
def _sigmoid(op, dy):
    y = op.outputs[0]
    return dy * (y * (1.0 - y))


@_replaces("Tanh")
def _tanh(op, dy):
    return dy * (1.0 - tf.square(op.outputs[0]))


@_replaces("Sqrt")
def _sqrt(op, dy):
    return dy * (0.5 / op.outputs[0])


@_replaces("Rsqrt")
def _rsqrt(op, dy):
    y = op.outputs[0]
    return dy * (-0.5 * y * y * y)


@_replaces("Maximum")
def _maximum(op, dy):
    # TensorFlow's would store zeros of the size of the inputs in the file.
    return _to_the_chosen(op, dy, op.inputs[0] >= op.inputs[1])


@_replaces("Minimum")
def _minimum(op, dy):
    return _to_the_chosen(op, dy, op.inputs[0] <= op.inputs[1])


def _to_the_chosen(op, dy, is_first: tf.Tensor):
    chosen = dy * _as_one_or_zero(is_first, dy)
    parts = zip((chosen, dy - chosen), op.inputs, strict=True)
    return [_summed_to(part, x.shape) for part, x in parts]


def _summed_to(gradient: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Undoes the broadcasting of an operand."""
    if gradient.shape == shape:
        return gradient
    added = gradient.shape.rank - shape.rank
    axes = [
        axis
        for axis in range(gradient.shape.rank)
        if axis < added or shape[axis - added] == 1
    ]
    return tf.reshape(tf.reduce_sum(gradient, axes), shape)


@_replaces("FusedBatchNormV3")
def _frozen_batch_norm(op, dy, *_):
    """The gradient of a normalization by stored statistics."""
    _check(op, not op.get_attr("is_training"), "normalizes by the batch's statistics")
    x, scale, _, mean, variance = op.inputs
    inverse = tf.math.rsqrt(variance + op.get_attr("epsilon"))
    to_scale = tf.reduce_sum(dy * ((x - mean) * inverse), [0, 1, 2])
    to_offset = tf.reduce_sum(dy, [0, 1, 2])
    return dy * (scale * inverse), to_scale, to_offset, None, None


@_replaces("Tile")
def _tile(op, dy):
    """The gradient of repeating along axes of size 1, as the gradient of a sum does.

    TensorFlow's sums over twice as many axes, which are more than XNNPACK takes.
    """
    x, multiples = op.inputs[0], tf.get_static_value(op.inputs[1])
    _check(op, multiples is not None, "repeats a number of times that is no constant")
    axes = [axis for axis, times in enumerate(multiples) if times > 1]
    _check(op, all(x.shape[axis] == 1 for axis in axes), "repeats more than one row")
    return tf.reduce_sum(dy, axes, keepdims=True), None


@_replaces("BiasAdd")
def _bias_add(op, dy):
    _check(op, op.get_attr("data_format") == b"NHWC", "has channels first")
    return dy, tf.reduce_sum(dy, list(range(dy.shape.rank - 1)))


@_replaces("GatherV2")
def _gather(op, dy):
    """The gradient of an embedding, as a product with one-hot rows: dense."""
    table, indices, axis = op.inputs
    plain = tf.get_static_value(axis) == 0 and op.get_attr("batch_dims") == 0
    _check(op, plain, "gathers along another axis than the first")
    count = table.shape[0]
    chosen = tf.one_hot(tf.reshape(indices, [-1]), count, dtype=dy.dtype)
    rows = tf.reshape(dy, [chosen.shape[0], -1])
    product = tf.matmul(chosen, rows, transpose_a=True)
    return tf.reshape(product, table.shape), None, None


@_replaces("StridedSlice")
def _strided_slice(op, dy):
    """The gradient of a slice of step 1: the slice padded with zeros."""
    begin, end, step = (tf.get_static_value(t) for t in op.inputs[1:])
    known = begin is not None and end is not None and step is not None
    _check(op, known, "has bounds that are no constants")
    masks = {
        name: op.get_attr(f"{name}_mask")
        for name in ("begin", "end", "shrink_axis", "new_axis", "ellipsis")
    }
    plain = not masks["new_axis"] and not masks["ellipsis"] and (step == 1).all()
    _check(op, plain, "adds axes or skips entries")
    shape = op.inputs[0].shape
    paddings, sizes = [], []
    for axis, length in enumerate(shape):
        chosen = range(length)
        if axis < len(begin):
            first, last = int(begin[axis]), int(end[axis])
            if masks["shrink_axis"] >> axis & 1:
                first %= length
                chosen = range(first, first + 1)
            else:
                start = None if masks["begin"] >> axis & 1 else first
                stop = None if masks["end"] >> axis & 1 else last
                chosen = chosen[start:stop]
        paddings.append([chosen.start, length - chosen.stop])
        sizes.append(len(chosen))
    return tf.pad(tf.reshape(dy, sizes), paddings), None, None, None


# A convolution y = conv(x, w) is linear in x and in w. With <conv(x, w), dy> as the
# one form behind it, the gradient of each of the three functions
#   conv(x, w), to_input(w, dy), to_filter(x, dy)
# consists of the other two.


@_replaces("Conv2D")
def _conv2d(op, dy):
    x, w = op.inputs
    geometry = _Geometry(op, x, w.shape)
    return geometry.to_input(w, dy), geometry.to_filter(x, dy)


@_replaces("Conv2DBackpropInput")
def _conv2d_to_input(op, ddx):
    _, w, dy = op.inputs
    geometry = _Geometry(op, ddx, w.shape)
    return None, geometry.to_filter(ddx, dy), geometry.conv(ddx, w)


class _Geometry:
    """The sizes of a two-dimensional convolution of `[batch, height, width, in]`."""

    def __init__(self, op, x: tf.Tensor, filter_shape: tf.TensorShape):
        data_format = op.get_attr("data_format")
        _check(op, data_format == b"NHWC", "has channels first")
        _check(op, set(op.get_attr("dilations")) == {1}, "is dilated")
        padding = op.get_attr("padding")
        _check(op, padding in (b"SAME", b"VALID"), "has explicit padding")
        _check(op, x.shape[-1] == filter_shape[2], "has groups of channels")
        self.strides = op.get_attr("strides")
        self.padding = padding.decode()
        self.input_shape = x.shape.as_list()
        self.window = filter_shape.as_list()[:2]

    def conv(self, x, w):
        return tf.nn.conv2d(x, w, self.strides, self.padding)

    def to_input(self, w, dy):
        return tf.nn.conv2d_transpose(
            dy, w, self.input_shape, self.strides, self.padding
        )

    def to_filter(self, x, dy):
        """The gradient for the filter, as a convolution of x with dy as filter.

        Batch and channels change places in both, and the stride becomes a dilation.
        """
        x = tf.pad(x, [[0, 0], *self._paddings(), [0, 0]])
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map({"Conv2D": _OF_FILTER_GRADIENT}):
            found = tf.nn.conv2d(
                tf.transpose(x, [3, 1, 2, 0]),
                tf.transpose(dy, [1, 2, 0, 3]),
                strides=1,
                padding="VALID",
                dilations=self.strides[1:3],
            )
        height, width = self.window
        return tf.transpose(found, [1, 2, 0, 3])[:height, :width]

    def _paddings(self) -> list[list[int]]:
        """Zeros before and behind height and width, as TensorFlow pads."""
        if self.padding == "VALID":
            return [[0, 0], [0, 0]]
        paddings = []
        sizes = zip(self.input_shape[1:3], self.window, self.strides[1:3], strict=True)
        for length, window, stride in sizes:
            outputs = -(-length // stride)
            total = max((outputs - 1) * stride + window - length, 0)
            paddings.append([total // 2, total - total // 2])
        return paddings


_OF_FILTER_GRADIENT = f"{_PREFIX}Conv2DOfFilterGradient"


@tf.RegisterGradient(_OF_FILTER_GRADIENT)
def _conv2d_of_filter_gradient(op, ddw):
    """The gradient of `to_filter`'s convolution, in the convolution's own terms."""
    x = tf.transpose(op.inputs[0], [3, 1, 2, 0])
    dy = tf.transpose(op.inputs[1], [2, 0, 1, 3])
    w = tf.transpose(ddw, [1, 2, 0, 3])
    strides = op.get_attr("dilations")
    # x is padded already, and may hold rows behind the last window's.
    to_dy = tf.nn.conv2d(x, w, strides, "VALID")
    to_x = tf.nn.conv2d_transpose(dy, w, x.shape, strides, "VALID")
    return tf.transpose(to_x, [3, 1, 2, 0]), tf.transpose(to_dy, [1, 2, 0, 3])


@_replaces("DepthwiseConv2dNative")
def _depthwise_conv2d(op, dy):
    """Products of shifted inputs, one for each place in the window."""
    x, w = op.inputs
    _check(op, op.get_attr("data_format") == b"NHWC", "has channels first")
    _check(op, set(op.get_attr("dilations")) == {1}, "is dilated")
    _check(op, op.get_attr("padding") in (b"SAME", b"VALID"), "has explicit padding")
    strides = op.get_attr("strides")
    _check(op, set(strides) == {1}, "has a stride (leave it out and pool)")
    height, width, channels, multiplier = w.shape
    paddings = [[0, 0], [0, 0], [0, 0], [0, 0]]
    if op.get_attr("padding") == b"SAME":
        for axis, window in ((1, height), (2, width)):
            paddings[axis] = [(window - 1) // 2, window - 1 - (window - 1) // 2]
    rows, columns = dy.shape[1:3]
    # Sums over tensors of five axes are refused by XNNPACK, so channels and their
    # multiples stay on one axis: a product with zeros and ones copies or adds them.
    copy = np.kron(np.eye(channels), np.ones([1, multiplier])).astype(np.float32)
    padded = tf.pad(x, paddings)
    if multiplier > 1:
        padded = tf.matmul(padded, copy)
    to_x, to_w = [], []
    for i, j in itertools.product(range(height), range(width)):
        seen = padded[:, i : i + rows, j : j + columns]
        to_w.append(tf.reduce_sum(seen * dy, [0, 1, 2]))
        change = dy * tf.reshape(w[i, j], [-1])
        if multiplier > 1:
            change = tf.matmul(change, copy.T)
        behind = [[0, 0], [i, height - 1 - i], [j, width - 1 - j], [0, 0]]
        to_x.append(tf.pad(change, behind))
    total = tf.add_n(to_x)
    (top, _), (left, _) = paddings[1:3]
    cropped = total[:, top : top + x.shape[1], left : left + x.shape[2]]
    return cropped, tf.reshape(tf.stack(to_w), w.shape)


@_replaces("MaxPool")
def _max_pool(op, dy):
    """The first greatest entry of a window takes the window's gradient."""
    x, y = op.inputs[0], op.outputs[0]
    window = _pool_window(op)
    free = tf.ones_like(y)
    parts = []
    for part in _parts(x, window, y.shape):
        is_it = _as_one_or_zero(tf.equal(part, y), y) * free
        free -= is_it
        parts.append(is_it * dy)
    return _joined(parts, window, x.shape)


@_replaces("AvgPool")
def _avg_pool(op, dy):
    window = _pool_window(op)
    share = dy / (window[0] * window[1])
    return _joined([share] * (window[0] * window[1]), window, op.inputs[0].shape)


def _pool_window(op) -> tuple[int, int]:
    """Height and width of a pooling operation's window."""
    _check(op, op.get_attr("data_format") == b"NHWC", "has channels first")
    ksize = op.get_attr("ksize")
    plain = ksize == op.get_attr("strides")
    _check(op, plain, "has windows that overlap or skip (leave out strides)")
    height, width = ksize[1:3]
    x = op.inputs[0]
    if op.get_attr("padding") == b"SAME":
        whole = x.shape[1] % height == 0 and x.shape[2] % width == 0
        _check(op, whole, "pads its input (use padding='valid')")
    return height, width


def _parts(x, window, pooled_shape):
    """The entries of each place in the windows, `[batch, rows, columns, channels]`."""
    (height, width), (rows, columns) = window, pooled_shape[1:3]
    for i, j in itertools.product(range(height), range(width)):
        yield x[:, i : rows * height : height, j : columns * width : width]


def _joined(parts, window, shape):
    """Puts the parts back in their places; zeros where no window reaches."""
    height, width = window
    _, rows, columns, channels = parts[0].shape
    lines = []
    for i in range(height):
        line = tf.stack(parts[i * width : (i + 1) * width], 3)
        lines.append(tf.reshape(line, [-1, rows, columns * width, channels]))
    whole = tf.reshape(
        tf.stack(lines, 2), [-1, rows * height, columns * width, channels]
    )
    left = [shape[1] - rows * height, shape[2] - columns * width]
    return tf.pad(whole, [[0, 0], [0, left[0]], [0, left[1]], [0, 0]])


def _check(op, condition, what: str) -> None:
    if not np.all(condition):
        raise errors.ModelError(
            f"{layer_of(op.name)!r} ({op.type}) {what}; such an operation cannot be "
            f"trained on a device. Change the layer, or {FREEZE}."
        )


def layer_of(op_name: str) -> str:
    """Returns the layer that made an operation, from the operation's name.

    Names begin with the model, then the layer: `sequential/lstm/while/MatMul`.
    """
    parts = [
        part
        for part in op_name.split("/")
        if not part.startswith(("derivative", "while")) and not part.endswith("_grad")
    ]
    return parts[1] if len(parts) > 2 else parts[0]

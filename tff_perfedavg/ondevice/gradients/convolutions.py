"""Replacement gradients of Conv2D, transposed Conv2D and Conv3D.

A convolution y = conv(x, w) is linear in x and in w. With <conv(x, w), dy> as the one
form behind it, the gradient of each of the three functions
  conv(x, w), to_input(w, dy), to_filter(x, dy)
consists of the other two.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tff_perfedavg.ondevice.gradients.registry import (
    PREFIX,
    check,
    check_channels_last,
    replaces,
)
from tff_perfedavg.ondevice.gradients.shapes import spread_out


@replaces("Conv2D")
def _conv2d(op, dy):
    x, w = op.inputs
    geometry = _Geometry.of(op, x.shape, w.shape, op.get_attr("dilations")[1:3])
    groups = x.shape[-1] // w.shape[2]
    if groups == 1:
        return geometry.to_input(w, dy), geometry.to_filter(x, dy)
    # Each group of channels is a convolution of its own.
    parts = [tf.split(t, groups, -1) for t in (x, w, dy)]
    to_x, to_w = [], []
    for of_x, of_w, of_dy in zip(*parts, strict=True):
        to_x.append(geometry.to_input(of_w, of_dy))
        to_w.append(geometry.to_filter(of_x, of_dy))
    return tf.concat(to_x, -1), tf.concat(to_w, -1)


@replaces("Conv2DBackpropInput")
def _conv2d_to_input(op, ddx):
    _, w, dy = op.inputs
    check(op, set(op.get_attr("dilations")) == {1}, "is dilated")
    check(op, ddx.shape[-1] == w.shape[2], "has groups of channels")
    geometry = _Geometry.of(op, ddx.shape, w.shape)
    return None, geometry.to_filter(ddx, dy), geometry.conv(ddx, w)


@replaces("Conv3D")
def _conv3d(op, dy):
    """A sum over the window's depth of convolutions of two dimensions."""
    x, w = op.inputs
    check(op, set(op.get_attr("dilations")) == {1}, "is dilated")
    check(op, x.shape[-1] == w.shape[3], "has groups of channels")
    check_channels_last(op)
    padding = op.get_attr("padding").decode()
    stride, *strides = op.get_attr("strides")[1:4]
    batch, depth, *image = x.shape.as_list()
    stops, reach = dy.shape[1], w.shape[0]
    total = max((stops - 1) * stride + reach - depth, 0)
    before = total // 2 if padding == "SAME" else 0
    merged = [batch * stops, *image]
    geometry = _Geometry(strides, padding, merged, w.shape.as_list()[1:3])
    # Tensors of three and four axes: runtimes slice and pad no more than that.
    layers = tf.reshape(x, [batch, depth, -1])
    layers = tf.pad(layers, [[0, 0], [before, total - before], [0, 0]])
    of_dy = tf.reshape(dy, [batch * stops, *dy.shape[2:]])
    to_x, to_w = [], []
    for i in range(reach):
        seen = layers[:, i : i + (stops - 1) * stride + 1 : stride]
        to_w.append(geometry.to_filter(tf.reshape(seen, merged), of_dy))
        change = tf.reshape(geometry.to_input(w[i], of_dy), [batch, stops, -1])
        # Zeros behind the last layer are none of the window's.
        spread = spread_out(change, 1, stride)[:, : (stops - 1) * stride + 1]
        behind = layers.shape[1] - i - spread.shape[1]
        to_x.append(tf.pad(spread, [[0, 0], [i, behind], [0, 0]]))
    added = tf.add_n(to_x)[:, before : before + depth]
    return tf.reshape(added, x.shape), tf.stack(to_w)


class _Geometry:
    """Geometry of a 2-D convolution of `[batch, height, width, in]`.

    A dilated window is a larger one with zeros between its entries.
    """

    def __init__(
        self,
        strides: Sequence[int],
        padding: str,
        input_shape: Sequence[int],
        window: Sequence[int],
        dilations: Sequence[int] = (1, 1),
    ):
        self._strides = list(strides)
        self._padding = padding
        self._input_shape = list(input_shape[:3])
        self._dilations = list(dilations)
        self._window = [
            (length - 1) * dilation + 1
            for length, dilation in zip(window, dilations, strict=True)
        ]

    @classmethod
    def of(cls, op, input_shape, filter_shape, dilations=(1, 1)) -> _Geometry:
        """Returns the geometry of a convolution operation."""
        check_channels_last(op)
        padding = op.get_attr("padding")
        check(op, padding in (b"SAME", b"VALID"), "has explicit padding")
        strides = op.get_attr("strides")[1:3]
        window = filter_shape.as_list()[:2]
        return cls(strides, padding.decode(), input_shape.as_list(), window, dilations)

    def conv(self, x, w):
        return tf.nn.conv2d(x, self._spread(w), self._strides, self._padding)

    def to_input(self, w, dy):
        shape = [*self._input_shape, w.shape[2]]
        return tf.nn.conv2d_transpose(
            dy, self._spread(w), shape, self._strides, self._padding
        )

    def to_filter(self, x, dy):
        """Returns the filter gradient, as a convolution of x with dy as filter.

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
                dilations=self._strides,
            )
        (height, width), (down, right) = self._window, self._dilations
        return tf.transpose(found, [1, 2, 0, 3])[:height:down, :width:right]

    def _spread(self, w):
        """A filter with zeros between its entries."""
        for axis, dilation in enumerate(self._dilations):
            w = spread_out(w, axis, dilation)
        height, width = self._window
        return w if self._dilations == [1, 1] else w[:height, :width]

    def _paddings(self) -> list[list[int]]:
        """Zeros before and behind height and width, as TensorFlow pads."""
        if self._padding == "VALID":
            return [[0, 0], [0, 0]]
        paddings = []
        sizes = zip(self._input_shape[1:], self._window, self._strides, strict=True)
        for length, window, stride in sizes:
            outputs = -(-length // stride)
            total = max((outputs - 1) * stride + window - length, 0)
            paddings.append([total // 2, total - total // 2])
        return paddings


_OF_FILTER_GRADIENT = f"{PREFIX}Conv2DOfFilterGradient"


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

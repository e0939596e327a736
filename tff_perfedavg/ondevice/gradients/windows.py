"""Replacement gradients of depthwise convolution, max and average pooling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg.ondevice.gradients.registry import (
    check,
    check_channels_last,
    replaces,
)


class Windows:
    """A sliding window over height and width of `[batch, height, width, ...]`.

    Attributes:
      places: rows and columns of each place in the window, in order.
    """

    def __init__(
        self,
        op: tf.Operation,
        window: Sequence[int],
        dilations: Sequence[int] = (1, 1),
    ):
        """Measures an operation's windows.

        Args:
          op: with strides and padding as attributes; its first input is what the window
            goes over, its first output has an entry for each place that it stops at.
          window: its height and width.
          dilations: how far its entries are apart.

        Raises:
          ModelError: if the padding is of another kind than `SAME` and `VALID`.
        """
        padding = op.get_attr("padding")
        check(op, padding in (b"SAME", b"VALID"), "has explicit padding")
        self._strides = op.get_attr("strides")[1:3]
        self._lengths = op.inputs[0].shape.as_list()[1:3]
        self._stops = op.outputs[0].shape.as_list()[1:3]
        self.places = [
            (i * dilations[0], j * dilations[1])
            for i, j in itertools.product(range(window[0]), range(window[1]))
        ]
        self._paddings = []
        for axis in range(2):
            reach = (window[axis] - 1) * dilations[axis] + 1
            last = (self._stops[axis] - 1) * self._strides[axis]
            total = max(last + reach - self._lengths[axis], 0)
            before = total // 2 if padding == b"SAME" else 0
            self._paddings.append([before, total - before])

    def padded(self, x: tf.Tensor, value: float = 0.0) -> tf.Tensor:
        """Pads x as the operation does.

        Args:
          x: `[batch, height, width, channels]`.
          value: what the padding holds.
        """
        paddings = [[0, 0], *self._paddings, [0, 0]]
        if not any(map(any, paddings)):
            return x
        return tf.pad(x, paddings, constant_values=value)

    def seen(self, padded: tf.Tensor) -> Iterator[tf.Tensor]:
        """Yields the strided slice that each place in the window sees."""
        (rows, columns), (down, right) = self._stops, self._strides
        for i, j in self.places:
            yield padded[
                :,
                i : i + (rows - 1) * down + 1 : down,
                j : j + (columns - 1) * right + 1 : right,
            ]

    def counts(self) -> np.ndarray:
        """Returns the number of input entries per window, float64 `[rows, columns]`."""
        per_axis = []
        for axis in range(2):
            places = sorted({place[axis] for place in self.places})
            first = np.arange(self._stops[axis]) * self._strides[axis]
            found = np.add.outer(first, places) - self._paddings[axis][0]
            is_inside = (found >= 0) & (found < self._lengths[axis])
            per_axis.append(is_inside.sum(1).astype(float))
        return np.outer(*per_axis)

    def placed(self, parts: Sequence[tf.Tensor]) -> tf.Tensor:
        """Scatters and adds the parts; the transpose of `padded` and `seen`.

        Args:
          parts: one for each place, `[batch, rows, columns, channels]`.
        """
        down, right = self._strides
        # Entries that are a stride apart stand side by side: no zeros between them have
        # to be made and added.
        grid = []
        for axis, (length, stride) in enumerate(
            zip(self._lengths, self._strides, strict=True)
        ):
            whole = -(-(length + sum(self._paddings[axis])) // stride)
            shift = max(place[axis] // stride for place in self.places)
            grid.append(max(whole, shift + self._stops[axis]))
        sums: dict[tuple[int, int], list[tf.Tensor]] = {}
        for (i, j), part in zip(self.places, parts, strict=True):
            before = i // down, j // right
            behind = [grid[a] - self._stops[a] - before[a] for a in range(2)]
            paddings = [[0, 0], [before[0], behind[0]], [before[1], behind[1]], [0, 0]]
            if any(map(any, paddings)):
                part = tf.pad(part, paddings)
            sums.setdefault((i % down, j % right), []).append(part)
        whole = self._interleaved(sums)
        (top, _), (left, _) = self._paddings
        height, width = self._lengths
        return whole[:, top : top + height, left : left + width]

    def _interleaved(self, sums: dict[tuple[int, int], list[tf.Tensor]]) -> tf.Tensor:
        """Interleaves strided slices."""
        added = {
            place: parts[0] if len(parts) == 1 else tf.add_n(parts)
            for place, parts in sums.items()
        }
        _, rows, columns, channels = next(iter(added.values())).shape
        (height, width), (down, right) = (
            [max(place[axis] for place in added) + 1 for axis in range(2)],
            self._strides,
        )
        lines = []
        for i in range(height):
            line = _stacked([added[i, j] for j in range(width)], right, channels)
            lines.append(tf.reshape(line, [-1, rows, columns * right * channels]))
        whole = _stacked(lines, down, columns * right * channels)
        return tf.reshape(whole, [-1, rows * down, columns * right, channels])


def _stacked(parts: Sequence[tf.Tensor], count: int, inner: int) -> tf.Tensor:
    """Puts parts `[..., inner]` side by side, zeros behind them up to a count."""
    if count == 1:
        return parts[0]
    flat = tf.stack([tf.reshape(part, [-1, inner]) for part in parts], 1)
    if count > len(parts):
        # A window smaller than its stride leaves out what is between.
        flat = tf.pad(flat, [[0, 0], [0, count - len(parts)], [0, 0]])
    return flat


@replaces("DepthwiseConv2dNative")
def _depthwise_conv2d(op, dy):
    """Products of shifted inputs, one for each place in the window."""
    x, w = op.inputs
    check_channels_last(op)
    height, width, channels, multiplier = w.shape
    windows = Windows(op, (height, width), op.get_attr("dilations")[1:3])
    # Channels and their multiples stay on one axis, so that sums are over tensors of
    # four: a product with zeros and ones copies or adds them.
    copy = np.kron(np.eye(channels), np.ones([1, multiplier])).astype(np.float32)
    padded = windows.padded(x)
    if multiplier > 1:
        padded = tf.matmul(padded, copy)
    to_x, to_w = [], []
    for kernel, seen in zip(_entries(w), windows.seen(padded), strict=True):
        to_w.append(tf.reduce_sum(seen * dy, [0, 1, 2]))
        change = dy * kernel
        if multiplier > 1:
            change = tf.matmul(change, copy.T)
        to_x.append(change)
    return windows.placed(to_x), tf.reshape(tf.stack(to_w), w.shape)


def _entries(w: tf.Tensor) -> Iterator[tf.Tensor]:
    """Yields a depthwise kernel's entry `[channels * multiplier]` of each place."""
    for i, j in itertools.product(range(w.shape[0]), range(w.shape[1])):
        yield tf.reshape(w[i, j], [-1])


@replaces("MaxPool")
def _max_pool(op, dy):
    """Gradient of max pooling, routed to the first maximum of each window."""
    x, y = op.inputs[0], op.outputs[0]
    windows = _pooled(op)
    free = tf.ones_like(y)
    parts = []
    for seen in windows.seen(windows.padded(x, x.dtype.min)):
        is_it = tf.cast(tf.equal(seen, y), y.dtype) * free
        free -= is_it
        parts.append(is_it * dy)
    return windows.placed(parts)


@replaces("AvgPool")
def _avg_pool(op, dy):
    """Gradient of average pooling."""
    windows = _pooled(op)
    counts = windows.counts()
    if (counts == len(windows.places)).all():
        share = dy / len(windows.places)
    else:
        share = dy * tf.constant(1.0 / counts[..., np.newaxis], dy.dtype)
    return windows.placed([share] * len(windows.places))


def _pooled(op: tf.Operation) -> Windows:
    check_channels_last(op)
    ksize = op.get_attr("ksize")
    check(op, ksize[0] == ksize[3] == 1, "pools over rows or channels")
    return Windows(op, ksize[1:3])

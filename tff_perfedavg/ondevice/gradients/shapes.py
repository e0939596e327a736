"""Replacement gradients of Tile, GatherV2 and StridedSlice; helpers of shape."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_perfedavg.ondevice.gradients.registry import check, replaces


def summed_to(gradient: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Reduces a broadcast operand's gradient to the operand's shape by sums.

    Args:
      gradient: of what it was broadcast to.
      shape: the operand's.
    """
    if gradient.shape == shape:
        return gradient
    added = gradient.shape.rank - shape.rank
    axes = [
        axis
        for axis in range(gradient.shape.rank)
        if axis < added or shape[axis - added] == 1
    ]
    return tf.reshape(tf.reduce_sum(gradient, axes), shape)


def spread_out(tensor: tf.Tensor, axis: int, step: int) -> tf.Tensor:
    """Dilates an axis: puts `step - 1` zeros behind each entry.

    Args:
      tensor: of a known shape.
      axis: which; `[..., length, ...]` becomes `[..., length * step, ...]`.
      step: 1 changes nothing.
    """
    if step == 1:
        return tensor
    shape = tensor.shape.as_list()
    outer, inner = (
        int(np.prod(part, dtype=int)) for part in (shape[:axis], shape[axis + 1 :])
    )
    lines = tf.reshape(tensor, [outer, shape[axis], 1, inner])
    spread = tf.pad(lines, [[0, 0], [0, 0], [0, step - 1], [0, 0]])
    return tf.reshape(spread, [*shape[:axis], shape[axis] * step, *shape[axis + 1 :]])


@replaces("Tile")
def _tile(op, dy):
    """The gradient of repeating along axes of size 1, as the gradient of a sum does.

    TensorFlow's sums over twice as many axes, which are more than XNNPACK takes.
    """
    x, multiples = op.inputs[0], tf.get_static_value(op.inputs[1])
    check(op, multiples is not None, "repeats a number of times that is no constant")
    axes = [axis for axis, times in enumerate(multiples) if times > 1]
    check(op, all(x.shape[axis] == 1 for axis in axes), "repeats more than one row")
    return tf.reduce_sum(dy, axes, keepdims=True), None


@replaces("GatherV2")
def _gather(op, dy):
    """The gradient of an embedding, as a product with one-hot rows: dense."""
    table, indices, axis = op.inputs
    plain = tf.get_static_value(axis) == 0 and op.get_attr("batch_dims") == 0
    check(op, plain, "gathers along another axis than the first")
    count = table.shape[0]
    chosen = tf.one_hot(tf.reshape(indices, [-1]), count, dtype=dy.dtype)
    rows = tf.reshape(dy, [chosen.shape[0], -1])
    product = tf.matmul(chosen, rows, transpose_a=True)
    return tf.reshape(product, table.shape), None, None


@replaces("StridedSlice")
def _strided_slice(op, dy):
    """The gradient of a slice that goes forward: the slice spread out and padded."""
    begin, end, step = (tf.get_static_value(t) for t in op.inputs[1:])
    known = begin is not None and end is not None and step is not None
    check(op, known, "has bounds that are no constants")
    masks = {
        name: op.get_attr(f"{name}_mask")
        for name in ("begin", "end", "shrink_axis", "new_axis", "ellipsis")
    }
    plain = not masks["new_axis"] and not masks["ellipsis"] and (step > 0).all()
    check(op, plain, "adds axes or goes backwards")
    shape = op.inputs[0].shape
    chosen = [range(length) for length in shape]
    for axis in range(len(begin)):
        first, last = int(begin[axis]), int(end[axis])
        if masks["shrink_axis"] >> axis & 1:
            first %= shape[axis]
            chosen[axis] = range(first, first + 1)
        else:
            start = None if masks["begin"] >> axis & 1 else first
            stop = None if masks["end"] >> axis & 1 else last
            chosen[axis] = chosen[axis][start : stop : int(step[axis])]
    placed = tf.reshape(dy, [len(part) for part in chosen])
    for axis, part in enumerate(chosen):
        placed = spread_out(placed, axis, part.step)
    # Zeros behind the last entry may reach beyond the end.
    room = [n - part.start for part, n in zip(chosen, shape, strict=True)]
    sizes = [min(pair) for pair in zip(placed.shape, room, strict=True)]
    if sizes != placed.shape:
        placed = tf.slice(placed, [0] * len(sizes), sizes)
    paddings = [
        [part.start, most - size]
        for part, most, size in zip(chosen, room, sizes, strict=True)
    ]
    return tf.pad(placed, paddings), None, None, None

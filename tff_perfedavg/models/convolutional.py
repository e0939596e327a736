"""Small convolutional networks: for images, sensor readings and characters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Model, glorot_initializer, glorot_uniform

# From (weights, x) to features or to outputs.
_OfRows: TypeAlias = Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor]


def cnn(
    input_shape: Sequence[int],
    num_classes: int,
    filters: Sequence[int] = (16, 32),
    hidden: int = 64,
) -> Model:
    """Builds 3x3 convolutions with ReLU and 2x2 max-pooling, then a dense layer.

    Args:
      input_shape: `[height, width]` or `[height, width, channels]` of an image.
      num_classes: number of logits.
      filters: filters of each convolution; each halves height and width.
      hidden: units of the dense layer.

    Weights are kernel and bias of each layer in turn; a convolution's kernel is
    `[3, 3, channels, filters]`.

    Raises:
      ModelError: if the image is too small to be halved once per convolution.
    """
    if len(input_shape) not in (2, 3):
        raise errors.ModelError(
            f"cnn: input_shape is {tuple(input_shape)}; give (height, width) or "
            "(height, width, channels)."
        )
    height, width, channels = (*input_shape, 1)[:3]
    shrink = 2 ** len(filters)
    if min(height, width) < shrink:
        raise errors.ModelError(
            f"cnn: an image of {height}x{width} cannot be halved {len(filters)} "
            f"times; give fewer filters or images of at least {shrink}x{shrink}."
        )
    depths = [channels, *filters]
    flat = (height // shrink) * (width // shrink) * depths[-1]

    shapes = [[3, 3, i, o] for i, o in itertools.pairwise(depths)]
    shapes += [[flat, hidden], [hidden, num_classes]]

    def features_of(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        features = tf.reshape(x, [-1, height, width, channels])
        convolutions = weights[:-4]
        for kernel, bias in zip(convolutions[::2], convolutions[1::2], strict=True):
            features = tf.nn.conv2d(features, kernel, strides=1, padding="SAME")
            # Pooled first, which gives the same and leaves a quarter to do.
            features = tf.nn.relu(_max_pool_2x2(features) + bias)
        return _hidden_layer(tf.reshape(features, [-1, flat]), weights[-4:-2])

    return Model(
        name="cnn",
        init=glorot_initializer(shapes),
        apply=_with_head(features_of),
        features=features_of,
        input_spec=tf.TensorSpec([None, *input_shape], tf.float32),
        num_classes=num_classes,
    )


def conv1d(
    input_shape: Sequence[int],
    num_classes: int,
    filters: Sequence[int] = (24, 32),
    hidden: int = 64,
    width: int = 8,
    stride: int = 4,
) -> Model:
    """Builds strided convolutions over time with ReLU, then a dense layer.

    For windows of sensor readings, such as a phone's accelerometer and gyroscope.

    Args:
      input_shape: `[time, channels]` of a window.
      num_classes: number of logits.
      filters: filters of each convolution.
      hidden: units of the dense layer.
      width: readings under each convolution.
      stride: readings each convolution moves on by; time shrinks by as much.

    Weights are kernel and bias of each layer in turn; a convolution's kernel is
    `[width, channels, filters]`.

    Raises:
      ModelError: if the window is too short.
    """
    if len(input_shape) != 2:
        raise errors.ModelError(
            f"conv1d: input_shape is {tuple(input_shape)}; give (time, channels)."
        )
    time, channels = input_shape
    left = time
    for _ in filters:
        left = -(-left // stride)
    if time < width:
        raise errors.ModelError(
            f"conv1d: a window of {time} readings is shorter than a convolution's "
            f"width of {width}."
        )
    depths = [channels, *filters]
    flat = left * depths[-1]
    shapes = [[width, i, o] for i, o in itertools.pairwise(depths)]
    shapes += [[flat, hidden], [hidden, num_classes]]

    def features_of(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        features = tf.reshape(x, [-1, time, channels])
        features = _conv1d_layers(features, weights[:-4], stride)
        return _hidden_layer(tf.reshape(features, [-1, flat]), weights[-4:-2])

    return Model(
        name="conv1d",
        init=glorot_initializer(shapes),
        apply=_with_head(features_of),
        features=features_of,
        input_spec=tf.TensorSpec([None, *input_shape], tf.float32),
        num_classes=num_classes,
    )


def char_cnn(
    input_shape: Sequence[int],
    num_classes: int,
    embedding: int = 16,
    filters: Sequence[int] = (32, 48),
    hidden: int = 64,
) -> Model:
    """Builds a convolutional network that predicts the next character.

    Characters before the one predicted are embedded (as a product with one-hot rows,
    whose gradient is dense), then read by strided convolutions.

    Args:
      input_shape: `[context]` characters, given as the numbers 0 to num_classes - 1
        in floating point.
      num_classes: size of the alphabet, and number of logits.
      embedding: size of a character's vector.
      filters: filters of each convolution, five characters wide, moving by two.
      hidden: units of the dense layer.

    Weights are the embedding `[num_classes, embedding]`, then kernel and bias of
    each layer in turn.
    """
    if len(input_shape) != 1:
        raise errors.ModelError(
            f"char_cnn: input_shape is {tuple(input_shape)}; give (context,)."
        )
    (context,) = input_shape
    left = context
    for _ in filters:
        left = -(-left // 2)
    depths = [embedding, *filters]
    flat = left * depths[-1]
    shapes = [[5, i, o] for i, o in itertools.pairwise(depths)]
    shapes += [[flat, hidden], [hidden, num_classes]]
    rest = glorot_initializer(shapes)

    def init(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, 1])
        table = glorot_uniform(rng, [num_classes, embedding])
        return [table, *rest(seed)]

    def features_of(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        table, *others = weights
        characters = tf.one_hot(tf.cast(x, tf.int32), num_classes, dtype=table.dtype)
        features = tf.reshape(characters, [-1, num_classes]) @ table
        features = tf.reshape(features, [-1, context, embedding])
        features = _conv1d_layers(features, others[:-4], stride=2)
        return _hidden_layer(tf.reshape(features, [-1, flat]), others[-4:-2])

    return Model(
        name="char_cnn",
        init=init,
        apply=_with_head(features_of),
        features=features_of,
        input_spec=tf.TensorSpec([None, context], tf.float32),
        num_classes=num_classes,
    )


def _conv1d_layers(
    features: tf.Tensor, weights: Sequence[tf.Tensor], stride: int
) -> tf.Tensor:
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        features = tf.nn.conv1d(features, kernel, stride=stride, padding="SAME")
        features = tf.nn.relu(features + bias)
    return features


def _max_pool_2x2(features: tf.Tensor) -> tf.Tensor:
    """Max-pooling of windows of 2x2 without overlap; an odd row or column is left out.

    Two maxima, whose gradients, first and second, are cheap: those of the pooling
    operation take three times as long, unless oneDNN happens to replace them.
    """
    _, height, width, channels = features.shape
    rows, columns = height // 2, width // 2
    if (height, width) != (2 * rows, 2 * columns):
        features = features[:, : 2 * rows, : 2 * columns]
    pairs = tf.reshape(features, [-1, rows, 4 * columns * channels])
    features = tf.maximum(*tf.split(pairs, 2, axis=2))
    pairs = tf.reshape(features, [-1, rows, columns, 2 * channels])
    return tf.maximum(*tf.split(pairs, 2, axis=3))


def _hidden_layer(features: tf.Tensor, weights: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.nn.relu(tf.matmul(features, weights[0]) + weights[1])


def _with_head(features_of: _OfRows) -> _OfRows:
    """A model's function: its features, and a linear layer of the last two weights."""

    def apply(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        return tf.matmul(features_of(weights, x), weights[-2]) + weights[-1]

    return apply

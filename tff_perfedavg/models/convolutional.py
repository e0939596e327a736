"""A small convolutional network for images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Model, glorot_uniform


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

    def init(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        shapes = [[3, 3, i, o] for i, o in itertools.pairwise(depths)]
        shapes += [[flat, hidden], [hidden, num_classes]]
        weights = []
        for shape in shapes:
            weights.append(glorot_uniform(rng, shape))
            weights.append(np.zeros([shape[-1]], np.float32))
        return weights

    def apply(weights, x):
        features = tf.reshape(x, [-1, height, width, channels])
        convolutions, dense = weights[:-4], weights[-4:]
        for kernel, bias in zip(convolutions[::2], convolutions[1::2], strict=True):
            features = tf.nn.conv2d(features, kernel, strides=1, padding="SAME")
            features = tf.nn.relu(features + bias)
            features = tf.nn.max_pool2d(features, 2, strides=2, padding="VALID")
        features = tf.reshape(features, [-1, flat])
        features = tf.nn.relu(tf.matmul(features, dense[0]) + dense[1])
        return tf.matmul(features, dense[2]) + dense[3]

    return Model(
        name="cnn",
        init=init,
        apply=apply,
        input_spec=tf.TensorSpec([None, *input_shape], tf.float32),
        num_classes=num_classes,
    )

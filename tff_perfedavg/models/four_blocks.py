"""Conv-4, the convolutional backbone of few-shot classification."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Model, glorot_uniform

BLOCKS = 4
_EPSILON = 1e-5


def conv4(input_shape: Sequence[int], num_classes: int, filters: int = 32) -> Model:
    """Builds four blocks of convolution, normalization and ReLU, and a linear head.

    The network of Vinyals et al. (2016, arXiv 1606.04080) and MAML (Finn et al., 2017,
    arXiv 1703.03400), with strides of two in the place of pooling, as MAML has it for
    Omniglot. Every image is normalized by itself, over all of its positions and
    channels (group normalization with one group, Wu and He, 2018, arXiv 1803.08494),
    not by the statistics of a batch: an answer then depends on no other row, batches
    of one and padded ones included, and a device's runtime has the operations of its
    gradients.

    Args:
      input_shape: `[height, width]` or `[height, width, channels]` of an image.
      num_classes: number of logits.
      filters: of each convolution.

    Weights are, of each block, the kernel `[3, 3, channels, filters]`, the scale and
    the offset `[filters]` behind the normalization; then kernel and bias of the head.
    The head starts at zero, so that no class is preferred to another before adapting:
    where labels are users' own, it cannot know which is which.

    Raises:
      ModelError: if the shape is no image's.
    """
    if len(input_shape) not in (2, 3):
        raise errors.ModelError(
            f"conv4: input_shape is {tuple(input_shape)}; give (height, width) or "
            "(height, width, channels)."
        )
    height, width, channels = (*input_shape, 1)[:3]
    depths = [channels, *[filters] * BLOCKS]
    shrunk = [-(-side // 2**BLOCKS) for side in (height, width)]
    flat = shrunk[0] * shrunk[1] * filters

    def init(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        weights = []
        for inputs, outputs in itertools.pairwise(depths):
            weights.append(glorot_uniform(rng, [3, 3, inputs, outputs]))
            weights += [np.ones([outputs], np.float32), np.zeros([outputs], np.float32)]
        head = np.zeros([flat, num_classes], np.float32)
        return [*weights, head, np.zeros([num_classes], np.float32)]

    def features(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        maps = tf.reshape(x, [-1, height, width, channels])
        return tf.reshape(_blocks(weights[:-2], maps), [-1, flat])

    def apply(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        return tf.matmul(features(weights, x), weights[-2]) + weights[-1]

    return Model(
        name="conv4",
        init=init,
        apply=apply,
        input_spec=tf.TensorSpec([None, *input_shape], tf.float32),
        num_classes=num_classes,
        features=features,
    )


def _blocks(weights: Sequence[tf.Tensor], maps: tf.Tensor) -> tf.Tensor:
    of_block = zip(weights[::3], weights[1::3], weights[2::3], strict=True)
    for kernel, scale, offset in of_block:
        maps = tf.nn.conv2d(maps, kernel, strides=2, padding="SAME")
        maps = tf.nn.relu(_normalized(maps) * scale + offset)
    return maps


def _normalized(maps: tf.Tensor) -> tf.Tensor:
    """Every row to mean 0 and variance 1, over positions and channels."""
    shape = maps.shape
    flat = tf.reshape(maps, [-1, shape[1] * shape[2] * shape[3]])
    centred = flat - tf.reduce_mean(flat, 1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), 1, keepdims=True)
    centred *= tf.math.rsqrt(variance + _EPSILON)
    return tf.reshape(centred, [-1, *shape[1:]])

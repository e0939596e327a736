"""Fully connected models: the paper's MLP and multinomial logistic regression."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import tensorflow as tf

from tff_perfedavg.models.model import (
    CLASS_LABELS,
    MaskedLoss,
    Model,
    glorot_initializer,
    masked_cross_entropy,
    masked_squared_error,
)


def mlp(
    input_shape: Sequence[int], num_classes: int, hidden: Sequence[int] = (80, 60)
) -> Model:
    """Builds the paper's MLP: ELU layers of 80 and 60 (arXiv 2002.07948, sec. 5).

    Args:
      input_shape: shape of one row's features; they are flattened.
      num_classes: number of logits.
      hidden: units of each hidden layer.

    Weights are kernel `[inputs, units]` and bias `[units]` of each layer in turn.
    """
    return _dense_stack("mlp", input_shape, [*hidden, num_classes], num_classes)


def logistic_regression(input_shape: Sequence[int], num_classes: int) -> Model:
    """Builds multinomial logistic regression on flattened features.

    Args:
      input_shape: shape of one row's features.
      num_classes: number of logits.

    Weights are the kernel `[inputs, num_classes]` and the bias `[num_classes]`.
    """
    return _dense_stack("logistic_regression", input_shape, [num_classes], num_classes)


def mlp_regressor(
    input_shape: Sequence[int], num_outputs: int = 1, hidden: Sequence[int] = (40, 40)
) -> Model:
    """Builds an MLP regressor with ELU layers and the mean squared error.

    Args:
      input_shape: shape of one row's features; they are flattened.
      num_outputs: numbers predicted; labels are float32 `[batch, num_outputs]`.
      hidden: units of each hidden layer.
    """
    return _dense_stack(
        "mlp_regressor",
        input_shape,
        [*hidden, num_outputs],
        num_classes=None,
        label_spec=tf.TensorSpec([None, num_outputs], tf.float32),
        loss=masked_squared_error,
    )


def _dense_stack(
    name: str,
    input_shape: Sequence[int],
    units: Sequence[int],
    num_classes: int | None,
    label_spec: tf.TensorSpec = CLASS_LABELS,
    loss: MaskedLoss = masked_cross_entropy,
) -> Model:
    num_inputs = math.prod(input_shape)
    sizes = [num_inputs, *units]

    def features(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        hidden = tf.reshape(x, [-1, num_inputs])
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            hidden = tf.nn.elu(tf.matmul(hidden, kernel) + bias)
        return hidden

    def apply(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        return tf.matmul(features(weights, x), weights[-2]) + weights[-1]

    return Model(
        name=name,
        init=glorot_initializer(list(itertools.pairwise(sizes))),
        apply=apply,
        input_spec=tf.TensorSpec([None, *input_shape], tf.float32),
        num_classes=num_classes,
        label_spec=label_spec,
        loss=loss,
        features=features,
    )

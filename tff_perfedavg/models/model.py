"""Model type: pure functions of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors


class Batch(NamedTuple):
    """A padded, masked batch of one user's rows.

    Attributes:
      x: `[batch, ...]` floating-point features.
      y: `[batch, ...]` labels.
      mask: `[batch]` of x's dtype, 1 for a row that counts and 0 for padding.
    """

    x: tf.Tensor
    y: tf.Tensor
    mask: tf.Tensor


def masked_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    """Returns the mean softmax cross-entropy of the rows that count.

    Args:
      logits: `[batch, classes]`.
      labels: `[batch]` class numbers.
      mask: `[batch]` of the logits' dtype, 1 or 0. All 0 gives a loss of 0.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return _masked_mean(losses, mask)


def masked_squared_error(
    outputs: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    """Returns the mean squared error of the rows that count.

    Args:
      outputs: `[batch, numbers]`.
      labels: `[batch, numbers]`.
      mask: `[batch]` of the outputs' dtype, 1 or 0. All 0 gives a loss of 0.
    """
    losses = tf.reduce_mean(tf.math.squared_difference(outputs, labels), -1)
    return _masked_mean(losses, mask)


def _masked_mean(losses: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(losses * mask) / tf.maximum(tf.reduce_sum(mask), 1)


# From (outputs, labels, mask `[batch]`) to the scalar mean over the rows that count.
MaskedLoss: TypeAlias = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# One class number per row.
CLASS_LABELS = tf.TensorSpec([None], tf.int32)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as pure functions: weights in, outputs out, no variables.

    Attributes:
      name: for messages and files.
      init: from a seed to initial weights, a list of float32 arrays.
      apply: from (weights, x `[batch, ...]`) to outputs `[batch, ...]`; logits
        for a classifier. It computes in the dtype of its arguments.
      input_spec: shape `[None, ...]` and dtype of x.
      num_classes: classes of the labels; None if the labels are no classes, in
        which case no accuracy is measured.
      label_spec: shape `[None, ...]` and dtype of y.
      features: from (weights, x) to what the last layer sees, `[batch, features]`;
        None if the model does not tell.
      has_constants: whether `apply` has weights of its own that never move.
      loss: from (outputs, y, mask `[batch]`) to the scalar mean loss over the
        rows whose mask is 1.
    """

    name: str
    init: Callable[[int], list[np.ndarray]]
    apply: Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor]
    input_spec: tf.TensorSpec
    num_classes: int | None
    label_spec: tf.TensorSpec = CLASS_LABELS
    loss: MaskedLoss = masked_cross_entropy
    features: Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor] | None = None
    has_constants: bool = False

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 2:
            raise errors.ModelError(
                f"{self.name} has {self.num_classes} classes; a classifier has two at "
                "least, and a model of numbers has None."
            )

    def batch_loss(self, weights: Sequence[tf.Tensor], batch: Batch) -> tf.Tensor:
        """Returns the scalar mean loss over the rows of the batch that count.

        Args:
          weights: tensors as `init` gives them.
          batch: the rows.
        """
        return self.loss(self.apply(weights, batch.x), batch.y, batch.mask)

    def evaluate(self, weights: Sequence[tf.Tensor], batch: Batch) -> tf.Tensor:
        """Returns float32 `[2]`: mean loss and accuracy over the rows that count.

        Accuracy is NaN for a model without classes, and both are NaN where no
        row counts.

        Args:
          weights: tensors as `init` gives them.
          batch: the rows.
        """
        outputs = self.apply(weights, batch.x)
        count = tf.reduce_sum(batch.mask)
        loss = self.loss(outputs, batch.y, batch.mask)
        if self.num_classes is None:
            accuracy = tf.fill([], float("nan"))
        else:
            hits = tf.equal(tf.argmax(outputs, -1, batch.y.dtype), batch.y)
            accuracy = tf.reduce_sum(tf.cast(hits, loss.dtype) * batch.mask) / count
        loss = tf.where(count > 0, loss, float("nan"))
        return tf.stack([tf.cast(loss, tf.float32), tf.cast(accuracy, tf.float32)])


def glorot_uniform(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Draws a float32 weight by Glorot uniform initialization (2010, eq. 16).

    Args:
      rng: where the draw comes from.
      shape: `[..., inputs, outputs]`; leading sizes are a convolution's window.
    """
    window = int(np.prod(shape[:-2]))
    limit = np.sqrt(6.0 / (window * (shape[-2] + shape[-1])))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def glorot_initializer(
    shapes: Sequence[Sequence[int]],
) -> Callable[[int], list[np.ndarray]]:
    """Returns an `init` of kernels by `glorot_uniform`, each with a bias of zeros.

    Args:
      shapes: of the kernels; a bias has the size of its kernel's last axis.
    """

    def init(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        weights = []
        for shape in shapes:
            weights.append(glorot_uniform(rng, shape))
            weights.append(np.zeros([shape[-1]], np.float32))
        return weights

    return init

"""Conversion between models and `tff.learning.models.FunctionalModel`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.models.model import Model


def to_tff(model: Model, *, seed: int = 0) -> tff.learning.models.FunctionalModel:
    """Converts a model to a TFF functional model.

    The result's loss takes no `sample_weight` other than a `[batch]` of 0 and 1,
    which leaves rows out. It has no metrics of its own.

    Args:
      model: the model.
      seed: the initial weights are `model.init(seed)`.
    """

    @tf.function
    def predict_on_batch(model_weights, x, training):  # type: ignore[no-untyped-def]
        del training  # Our models compute the same either way.
        trainable, _ = model_weights
        return model.apply(trainable, x)

    def loss(
        output: tf.Tensor, label: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        if sample_weight is None:
            sample_weight = tf.ones([tf.shape(output)[0]], output.dtype)
        return model.loss(output, label, sample_weight)

    return tff.learning.models.FunctionalModel(
        initial_weights=(tuple(model.init(seed)), ()),
        predict_on_batch_fn=predict_on_batch,
        loss_fn=loss,
        input_spec=(model.input_spec, model.label_spec),
    )


def from_tff(
    functional_model: tff.learning.models.FunctionalModel,
    *,
    num_classes: int | None,
    name: str = "tff_functional_model",
) -> Model:
    """Converts a TFF functional model to a model.

    Its trainable weights become the model's weights, in order, starting from the
    given values whatever the seed; its non-trainable weights become constants. It
    is run with `training=True`, as TFF does in training.

    Args:
      functional_model: with a pair (x, y) as `input_spec`.
      num_classes: classes of the labels, None if they are no classes.
      name: for messages and files.

    Raises:
      ModelError: if `input_spec` is not one tensor x and one tensor y.
    """
    try:
        x_spec, y_spec = functional_model.input_spec
        specs = (tf.TensorSpec.from_spec(x_spec), tf.TensorSpec.from_spec(y_spec))
    except (AttributeError, TypeError, ValueError) as e:
        raise errors.ModelError(
            f"{name}: input_spec is {functional_model.input_spec}; it must be a pair "
            "of tensor specs (x, y)."
        ) from e
    trainable, non_trainable = functional_model.initial_weights
    initial = [np.asarray(w) for w in tf.nest.flatten(trainable)]

    def apply(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        packed = tf.nest.pack_sequence_as(trainable, list(weights))
        constants = tf.nest.map_structure(tf.constant, non_trainable)
        return functional_model.predict_on_batch((packed, constants), x, True)

    def loss(outputs: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        # TFF's losses are means over a batch, so padding is cut off first.
        counts = mask > 0
        kept = [tf.boolean_mask(t, counts) for t in (outputs, labels)]
        return functional_model.loss(*kept)

    return Model(
        name=name,
        init=lambda seed: [w.copy() for w in initial],
        apply=apply,
        input_spec=specs[0],
        num_classes=num_classes,
        label_spec=specs[1],
        loss=loss,
    )

"""Any stock Keras model as a pure function of its trainable weights."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import (
    MaskedLoss,
    Model,
    masked_cross_entropy,
    masked_squared_error,
)

# Layers are shared Python objects whose attributes are swapped while a call is
# traced, so only one thread may trace at a time.
_SWAP_LOCK = threading.RLock()
# Of dropout, noise and augmentation of all kinds.
_RANDOM_LAYER = tf.keras.__internal__.layers.BaseRandomLayer
# Where layers keep what they do last.
_FUNCTIONS = ("activation", "function")


def from_keras(
    keras_model: tf.keras.Model,
    *,
    loss: MaskedLoss | None = None,
    is_regressor: bool = False,
) -> Model:
    """Turns a built Keras model into a `Model`: a classifier, or a regressor.

    The weights are the model's trainable weights, in Keras' order, starting from
    their present values (so `init` ignores its seed, and a pretrained model stays
    pretrained). Frozen weights are constants. Layers run in inference mode: dropout,
    noise and augmentation are inactive, of which a warning tells.

    Args:
      keras_model: one input `[batch, ...]`, one output: logits `[batch, classes]`, or
        `[batch, numbers]` of a regressor. It is not changed.
      loss: from (outputs, labels, mask) to the scalar mean over rows that count; by
        default the cross-entropy, and the mean squared error of a regressor.
      is_regressor: whether labels are numbers, `[batch, numbers]`, and no classes.

    Raises:
      ModelError: naming the layer, if it updates state while training (batch
        normalization whose moving statistics are not frozen, stateful layers),
        carries a regularizer or a constraint or has weights kept where they cannot be
        replaced; or if the model is not built, has several inputs or outputs; or if
        a classifier has a single logit or ends in a softmax.
    """
    _check_supported(keras_model, is_regressor)
    slots = _weight_slots(keras_model)
    trainable_ids = [id(v) for v in keras_model.trainable_weights]
    initial = [np.array(v) for v in keras_model.trainable_weights]
    frozen = {id(v): np.array(v) for v in keras_model.non_trainable_weights}

    def apply(weights: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        if len(weights) != len(trainable_ids):
            raise errors.ModelError(
                f"{keras_model.name}: {len(weights)} weights given, it has "
                f"{len(trainable_ids)}."
            )
        tensors = dict(zip(trainable_ids, weights, strict=True))
        tensors |= {key: tf.constant(value) for key, value in frozen.items()}
        with _SWAP_LOCK, _replaced(slots, tensors):
            return keras_model(x, training=False)

    input_spec = tf.TensorSpec(
        [None, *keras_model.input_shape[1:]], keras_model.inputs[0].dtype
    )
    if not is_regressor:
        _check_traced(keras_model.name, apply, initial, input_spec)
    return Model(
        name=keras_model.name,
        init=lambda seed: [w.copy() for w in initial],
        apply=apply,
        input_spec=input_spec,
        has_constants=bool(frozen),
        **_labels_of(keras_model, is_regressor, loss),
    )


def _labels_of(
    keras_model: tf.keras.Model, is_regressor: bool, loss: MaskedLoss | None
) -> dict[str, Any]:
    """What a model's labels are, and its loss on them."""
    size = keras_model.output_shape[-1]
    if not is_regressor:
        return {"num_classes": size, "loss": loss or masked_cross_entropy}
    return {
        "num_classes": None,
        "label_spec": tf.TensorSpec([None, size], tf.float32),
        "loss": loss or masked_squared_error,
    }


def _layers(keras_model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    return (m for m in _modules(keras_model) if isinstance(m, tf.keras.layers.Layer))


def _modules(keras_model: tf.keras.Model) -> Sequence[tf.Module]:
    """Returns a model's modules, however deep.

    Raises:
      ModelError: if TensorFlow cannot tell them, as with recurrent dropout.
    """
    try:
        found: Sequence[tf.Module] = keras_model.submodules
        return found
    except ValueError as e:
        # Keras keeps its masks by graph, in a dictionary that has no order.
        raise errors.ModelError(
            f"{keras_model.name}: its layers cannot be listed ({e}). Build recurrent "
            "layers with recurrent_dropout=0; it would be inactive in any case."
        ) from e


def _check_supported(keras_model: tf.keras.Model, is_regressor: bool) -> None:
    if not isinstance(keras_model, tf.keras.Model):
        raise errors.ModelError(
            f"from_keras: a {type(keras_model).__name__} was given; give a "
            "tf.keras.Model."
        )
    name = keras_model.name
    if not keras_model.built or keras_model.inputs is None:
        raise errors.ModelError(
            f"{name}: the model has no input shape yet; begin it with a "
            "tf.keras.Input or an input_shape."
        )
    if len(keras_model.inputs) != 1 or len(keras_model.outputs) != 1:
        raise errors.ModelError(
            f"{name}: it has {len(keras_model.inputs)} inputs and "
            f"{len(keras_model.outputs)} outputs; one of each is supported. "
            "Concatenate the inputs into one tensor and split it in the model."
        )
    inactive = []
    for layer in _layers(keras_model):
        if isinstance(layer, tf.keras.layers.BatchNormalization) and layer.trainable:
            raise errors.ModelError(
                f"{name}: layer {layer.name!r} is a batch normalization that "
                "updates moving statistics, which a user's few rows would spoil. "
                "Use GroupNormalization, or freeze the layer with "
                "layer.trainable = False."
            )
        if getattr(layer, "stateful", False):
            raise errors.ModelError(
                f"{name}: layer {layer.name!r} keeps state between calls; build "
                "it with stateful=False."
            )
        if layer.losses:
            raise errors.ModelError(
                f"{name}: layer {layer.name!r} adds a loss of its own "
                "(regularizer or activity loss), which local training would not "
                "see. Remove it, and put the penalty into `loss`."
            )
        for attribute, constraint in vars(layer).items():
            if attribute.endswith("_constraint") and constraint is not None:
                raise errors.ModelError(
                    f"{name}: layer {layer.name!r} has a {attribute}, which local "
                    "training would not keep. Remove it."
                )
        if _is_random(layer):
            inactive.append(layer.name)
    _check_output(keras_model, is_regressor)
    if not keras_model.trainable_weights:
        raise errors.ModelError(
            f"{name}: it has no trainable weight; nothing could be learned. "
            "Unfreeze at least one layer."
        )
    if inactive:
        warnings.warn(
            f"{name}: what acts at random is inactive in local training: "
            f"{', '.join(inactive)}.",
            stacklevel=3,
        )


def _is_random(layer: tf.keras.layers.Layer) -> bool:
    """Whether a layer does something else in training than when it predicts."""
    rates = [
        getattr(layer, name, None)
        for name in ("rate", "dropout", "recurrent_dropout", "stddev")
    ]
    given = [rate for rate in rates if isinstance(rate, (int, float))]
    # With a rate of 0 it does nothing; augmentation has factors instead of one.
    return any(given) or (not given and isinstance(layer, _RANDOM_LAYER))


def _check_output(keras_model: tf.keras.Model, is_regressor: bool) -> None:
    """Raises `ModelError` unless the output is numbers, or logits of two classes."""
    name, (output,) = keras_model.name, keras_model.outputs
    if output.shape.rank != 2 or output.shape[-1] is None:
        wanted = (
            "that of a regressor must be [rows, numbers]. End it with a Dense layer."
            if is_regressor
            else "it must be logits [rows, classes]. End it with a Dense layer of one "
            "unit a class."
        )
        raise errors.ModelError(
            f"{name}: its output has shape {list(output.shape)}; {wanted}"
        )
    if is_regressor:
        return
    if output.shape[-1] < 2:
        raise errors.ModelError(
            f"{name}: its output is a single number, and a classifier of one class has "
            "nothing to learn. End it with Dense(2), whose labels are 0 and 1."
        )
    last = keras_model.layers[-1]
    functions = [getattr(last, attribute, None) for attribute in _FUNCTIONS]
    if isinstance(last, tf.keras.layers.Softmax) or any(map(_is_softmax, functions)):
        raise _ends_in_softmax(name, last.name)


def _is_softmax(function: object) -> bool:
    """Whether a function is a softmax, whatever it is called."""
    if not callable(function):
        return False
    probe = tf.constant([[-2.0, 0.0, 3.0]])
    try:
        return np.allclose(function(probe), tf.nn.softmax(probe))
    except Exception:
        # It takes something else than logits.
        return False


def _check_traced(
    name: str,
    apply: Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor],
    weights: Sequence[np.ndarray],
    x: tf.TensorSpec,
) -> None:
    """Raises `ModelError` if a model ends in a softmax, be it a custom layer's."""
    specs = [tf.TensorSpec(w.shape, w.dtype) for w in weights]
    # Without AutoGraph, which would wrap our errors in its own.
    traced = tf.function(lambda weights, x: apply(weights, x), autograph=False)
    try:
        operation = traced.get_concrete_function(specs, x).graph.outputs[0].op
    except TypeError:
        # Of other types than float32 the export tells.
        return
    while operation.type in ("Identity", "Reshape"):
        operation = operation.inputs[0].op
    if operation.type == "Softmax":
        raise _ends_in_softmax(name, operation.name)


def _ends_in_softmax(name: str, layer: str) -> errors.ModelError:
    return errors.ModelError(
        f"{name}: the last layer {layer!r} ends in a softmax; the model must return "
        "logits. Drop the softmax."
    )


def _weight_slots(keras_model: tf.keras.Model) -> list[tuple[object, str, int]]:
    """Finds the attribute that holds each weight: (owner, attribute, variable id)."""
    wanted = {id(v): v for v in keras_model.weights}
    slots = []
    for owner in [keras_model, *_modules(keras_model)]:
        for attribute, value in vars(owner).items():
            if isinstance(value, tf.Variable) and id(value) in wanted:
                slots.append((owner, attribute, id(value)))
    for _, _, key in slots:
        wanted.pop(key, None)
    if wanted:
        variable = next(iter(wanted.values()))
        layer = next(
            layer
            for layer in _layers(keras_model)
            if any(variable is w for w in layer.weights)
        )
        raise errors.ModelError(
            f"{keras_model.name}: layer {layer.name!r} keeps its weight "
            f"{variable.name!r} in a container, where it cannot be replaced. Keep "
            "it as an attribute of its own."
        )
    return slots


@contextlib.contextmanager
def _replaced(
    slots: Sequence[tuple[object, str, int]], tensors: Mapping[int, tf.Tensor]
) -> Iterator[None]:
    """Puts tensors in the place of variables while the model is called."""
    kept = [(owner, attribute, vars(owner)[attribute]) for owner, attribute, _ in slots]
    try:
        for owner, attribute, key in slots:
            # Not setattr: Keras tracks what is set through it.
            vars(owner)[attribute] = tensors[key]
        yield
    finally:
        for owner, attribute, value in kept:
            vars(owner)[attribute] = value

"""Export of a model to a TensorFlow Lite file with on-device training."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import hashlib
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from tff_perfedavg import __version__, errors
from tff_perfedavg.files import atomic_write
from tff_perfedavg.models.model import Model
from tff_perfedavg.ondevice import flatbuffer, parity, rewriting, seal
from tff_perfedavg.ondevice.config import FLOAT16, MAX_ADAPT_STEPS, ExportConfig
from tff_perfedavg.ondevice.deployment import Deployment
from tff_perfedavg.ondevice.gradients import layer_of
from tff_perfedavg.ondevice.signatures import DeviceModule, FixedModule
from tff_perfedavg.ondevice.supported import remedy
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.moves import ALL
from tff_perfedavg.progress import progress

# Of the converter's errors: the operation and where it is, and what is wrong with it.
_PLACE = re.compile(r'"(\w+):", "([^"@]+)@')
_REASON = re.compile(r"'tfl?\.\w+' op [^\n<]+")


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """Report of an export: size, operations and largest error.

    Attributes:
      path: the file.
      num_bytes: its size.
      operations: the runtime's operations it uses, all built in.
      largest_error: from a runtime to the largest difference from TensorFlow, of
        probabilities, weights, updates and losses, seen in the replay; relative to
        the largest number where that is above 1.
    """

    path: pathlib.Path
    num_bytes: int
    operations: list[str]
    largest_error: dict[str, float]


def export_tflite(
    model: Model,
    weights: Sequence[np.ndarray],
    path: pathlib.Path | str,
    config: ExportConfig | None = None,
    *,
    card: Mapping[str, object] | None = None,
    examples: tuple[np.ndarray, np.ndarray] | None = None,
) -> ExportReport:
    """Exports a model as a `.tflite` file with training signatures, and verifies it.

    Before the file appears, its signatures are replayed in TensorFlow's interpreter
    and in LiteRT against TensorFlow: `infer`, three times `adapt`, `adapt_steps`,
    `infer`, `reset`, `set_weights`, `meta_update`.

    Args:
      model: a model of float32 weights.
      weights: its initial weights, with learned rates behind them if `config` says
        that it was trained with such.
      path: the file to write.
      config: what the file can do; by default `ExportConfig()`.
      card: what `describe` tells, in addition to shapes and versions: anything JSON
        has, such as the data set and the learning rates of training.
      examples: rows (x, y) to replay with; by default random ones in [0, 1).

    Raises:
      ModelError: naming the layer, if a device's runtime lacks an operation the model
        or its gradient needs; naming the weight, if it or the model's arithmetic is
        not float32; or if the replay differs from TensorFlow by more than 1e-5. Then
        there is no file.
      ConfigError: if the card has a key that the export writes itself, more weight
        tensors are to adapt than there are, frozen ones are to be quantized and there
        are none, or `storage` cannot hold learned rates.
    """
    count = len(model.init(0))
    config = dataclasses.replace(config or ExportConfig(), num_tensors=count)
    initial = _checked_weights(model, weights, config.adaptation)
    _check_frozen(model, config)
    text = _card_text(model, initial, config, card or {})
    if config.storage == FLOAT16:
        # What the device will start from; of learned rates it has what they amount to.
        rounded = [w.astype(np.float16).astype(np.float32) for w in initial[:count]]
        initial = [*rounded, *initial[count:]]
    module = DeviceModule(model, initial, config, text)
    with _steps(module, "replayed") as done:
        content, operations = _converted(
            module, config, config.quantize_frozen, text, done
        )
        largest_error = parity.check(model, initial, config, content, examples)
        done("replayed")
    return _write(pathlib.Path(path), content, operations, largest_error)


@dataclasses.dataclass(frozen=True)
class ExportCheck:
    """Result of `check_exportable`: size and operations.

    Attributes:
      num_bytes: its size.
      operations: the runtime's operations it would use, all built in.
    """

    num_bytes: int
    operations: list[str]


def check_exportable(model: Model, config: ExportConfig | None = None) -> ExportCheck:
    """Checks before training that a model can be exported.

    Traces all signatures and converts them as `export_tflite` does, from untrained
    weights; what is left out is the replay. Seconds for small models; a MobileNet of 96
    pixels takes two minutes.

    Example:
      check = pfa.ondevice.check_exportable(pfa.from_keras(keras_model))
      print(f"{check.num_bytes:,} bytes")

    Args:
      model: a model of float32 weights.
      config: what the file is to do; by default `ExportConfig()`.

    Raises:
      ModelError: naming the layer, and what to do instead, if the model cannot be
        exported.
      ConfigError: as `export_tflite`.
    """
    initial = model.init(0)
    config = dataclasses.replace(config or ExportConfig(), num_tensors=len(initial))
    parameters = config.adaptation.parameters(initial)
    checked = _checked_weights(model, parameters, config.adaptation)
    _check_frozen(model, config)
    text = _card_text(model, checked, config, {})
    module = DeviceModule(model, checked, config, text)
    with _steps(module) as done:
        content, operations = _converted(
            module, config, config.quantize_frozen, text, done
        )
    return ExportCheck(len(content), operations)


def export_inference(
    model: Model,
    weights: Sequence[np.ndarray],
    path: pathlib.Path | str,
    examples: tuple[np.ndarray, np.ndarray],
    *,
    infer_batch_size: int = 1,
    card: Mapping[str, object] | None = None,
) -> ExportReport:
    """Exports weights as a quantized `.tflite` file for inference alone.

    The weights, an adapted user's for instance, are kept as 8-bit integers; the file
    has `infer` and `describe` alone. It is not held to TensorFlow's numbers: what
    quantization changes is in the report.

    Args:
      model: the model.
      weights: its weights.
      path: the file to write.
      examples: rows (x, y) to measure with.
      infer_batch_size: rows `infer` takes at once.
      card: as for `export_tflite`.

    Returns:
      The report; `largest_error` is the largest difference of a probability (of an
      output, for a regressor) from TensorFlow's on these rows.

    Raises:
      ModelError: as `export_tflite`.
    """
    config = ExportConfig(infer_batch_size=infer_batch_size, max_local_steps=0)
    initial = _checked_weights(model, weights, config.adaptation)
    text = _card_text(model, initial, config, {**(card or {}), "quantized": True})
    module = FixedModule(model, initial, config, text)
    content, operations = _converted(module, config, True, text)
    x = np.asarray(examples[0]).astype(model.input_spec.dtype.as_numpy_dtype)
    largest_error = parity.largest_inference_error(model, initial, content, x)
    return _write(pathlib.Path(path), content, operations, largest_error)


def _checked_weights(
    model: Model, weights: Sequence[np.ndarray], adaptation: AdaptationConfig
) -> list[np.ndarray]:
    _check_float32(model)
    checked = [np.asarray(w, np.float32) for w in weights]
    expected = [w.shape for w in adaptation.parameters(model.init(0))]
    if [w.shape for w in checked] != expected:
        raise errors.ModelError(
            f"{model.name!r} takes weights of shapes {expected}, but these have "
            f"{[w.shape for w in checked]}."
        )
    if not all(np.isfinite(w).all() for w in checked):
        raise errors.ModelError(
            f"{model.name!r}: a weight is not finite; export a run that converged."
        )
    return checked


def _check_frozen(model: Model, config: ExportConfig) -> None:
    """Raises `ConfigError` if frozen weights are to be quantized and there are none."""
    is_frozen = model.has_constants or config.adaptation.moves != ALL
    if config.quantize_frozen and not is_frozen:
        raise errors.ConfigError(
            f"ExportConfig.quantize_frozen is set, but nothing of {model.name!r} is "
            "frozen; give num_trainable, for instance 2 for the last dense layer."
        )


def _check_float32(model: Model) -> None:
    """Raises `ModelError` unless weights, features and outputs are float32."""
    remedy = (
        "a device computes in float32. Build the model with dtype float32 "
        "(tf.keras.mixed_precision.set_global_policy('float32')); "
        "ExportConfig(storage='float16') halves the file."
    )
    for number, weight in enumerate(model.init(0)):
        if weight.dtype != np.float32:
            raise errors.ModelError(
                f"{model.name!r}: weight {number} is {weight.dtype}; {remedy}"
            )
    if not model.input_spec.dtype.is_floating:
        return
    shapes = [tf.TensorSpec(w.shape, tf.float32) for w in model.init(0)]
    try:
        traced = tf.function(lambda *w, x: model.apply(list(w), x), autograph=False)
        x = tf.TensorSpec([1, *model.input_spec.shape[1:]], model.input_spec.dtype)
        found = traced.get_concrete_function(*shapes, x=x).structured_outputs.dtype
    except TypeError as e:
        # A layer's policy casts its input, and not the weights it is given here.
        layer = re.search(r"calling layer '(.*?)'", str(e))
        where = f"layer {layer[1]!r}" if layer else "an operation"
        raise errors.ModelError(
            f"{model.name!r}: {where} does not compute in float32; {remedy}"
        ) from e
    for what, dtype in (("its input", model.input_spec.dtype), ("its output", found)):
        if dtype != tf.float32:
            raise errors.ModelError(f"{model.name!r}: {what} is {dtype.name}; {remedy}")


def _card_text(
    model: Model,
    weights: Sequence[np.ndarray],
    config: ExportConfig,
    card: Mapping[str, object],
) -> bytes:
    own = {
        "format": "tff_perfedavg",
        "format_version": 2,
        "model": model.name,
        "model_id": _identity(model, weights),
        "num_classes": model.num_classes,
        "input_shape": list(model.input_spec.shape[1:]),
        "label_shape": list(model.label_spec.shape[1:]),
        "num_weights": len(config.adaptation.weights(weights)),
        "weight_shapes": _personal_shapes(model, weights, config),
        "max_adapt_steps": MAX_ADAPT_STEPS,
        **_said(config),
        "versions": {
            "tff_perfedavg": __version__,
            "tensorflow": tf.__version__,
        },
    }
    twice = sorted(own.keys() & card.keys())
    if twice:
        raise errors.ConfigError(
            f"card has {', '.join(twice)}, which the export writes itself; call it "
            "something else."
        )
    return json.dumps({**own, **card}, separators=(",", ":")).encode()


def _personal_shapes(
    model: Model, weights: Sequence[np.ndarray], config: ExportConfig
) -> list[list[int]]:
    """The shapes of the weights that adapt, as `get_weights` returns them."""
    return [list(w.shape) for w in Deployment(model, weights, config).weights]


def _said(config: ExportConfig) -> dict[str, object]:
    """Returns the capabilities section of the model card."""
    own = dataclasses.asdict(dataclasses.replace(config, trained=None))
    del own["trained"], own["num_tensors"]
    how = config.adaptation
    adaptation = {
        "num_steps": how.num_steps,
        "moves": how.moves,
        "head_tensors": None if how.moves == ALL else how.head_tensors,
        "pull": how.pull,
        "learned_rates": None if how.learned is None else how.learned.grain,
    }
    return {**own, "variant": config.method, "adaptation": adaptation}


def _identity(model: Model, weights: Sequence[np.ndarray]) -> str:
    """The identity of an initial model: personal weights belong to it.

    The SHA-256 of its sizes and of its initial weights, which are trained and so
    differ from any other's. The card's other fields, batch sizes and how the file
    stores its weights are no part of it, nor is the name, which Keras counts up.
    """
    sizes = {
        "input_shape": list(model.input_spec.shape[1:]),
        "label_shape": list(model.label_spec.shape[1:]),
        "num_classes": model.num_classes,
        "weights": [list(w.shape) for w in weights],
    }
    found = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for weight in weights:
        found.update(weight.astype("<f4").tobytes())
    return found.hexdigest()


# Small models are exported before anyone asks.
_PATIENCE_S = 60.0
_IS_SHOWN = contextvars.ContextVar("is_shown", default=False)


@contextlib.contextmanager
def showing_progress() -> Iterator[None]:
    """Context manager that shows the progress of exports on standard error."""
    token = _IS_SHOWN.set(True)
    try:
        yield
    finally:
        _IS_SHOWN.reset(token)


@contextlib.contextmanager
def _steps(module: FixedModule, *more: str) -> Iterator[Callable[[str], None]]:
    """Gives a function to call with the name of each step that is done."""
    if not _IS_SHOWN.get():
        yield lambda name: None
        return
    total = len(module.names) + 1 + len(more)
    with progress(total=total, desc="Export", unit="step", patience=_PATIENCE_S) as bar:

        def done(name: str) -> None:
            bar.set_postfix(done=name, refresh=False)
            bar.update()

        yield done


def _converted(
    module: FixedModule,
    config: ExportConfig,
    quantize: bool,
    card: bytes,
    done: Callable[[str], None] = lambda name: None,
) -> tuple[bytes, list[str]]:
    """Returns the file's content and its operations, all built in."""
    signatures = module.signatures(done)
    with tempfile.TemporaryDirectory() as directory, _quiet_converter():
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, directory, signatures, options)
        rewriting.rewrite(directory)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            directory, signature_keys=list(signatures)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        if quantize or config.storage == FLOAT16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if config.storage == FLOAT16:
            converter.target_spec.supported_types = [tf.float16]
        try:
            content = converter.convert()
        except Exception as e:  # The converter raises what its passes raise.
            raise errors.ModelError(_not_converted(module.model_name, str(e))) from e
    done("converted")
    model = flatbuffer.read(content)
    operations = flatbuffer.operations(model)
    custom = [name for name in operations if name.startswith("CUSTOM")]
    if custom:
        raise errors.ModelError(
            f"{module.model_name!r} needs operations that are not built in: "
            f"{', '.join(custom)}. Replace the layers they come from."
        )
    flatbuffer.add_metadata(model, flatbuffer.CARD, card)
    flatbuffer.shrink(model)
    return seal.sealed(flatbuffer.pack(model)), operations


def _not_converted(model_name: str, message: str) -> str:
    """What the converter says of an operation, without its dump of the program."""
    # Of operations that were made one, the first in the program is told last.
    places = [
        (op_type, name)
        for op_type, name in _PLACE.findall(message)
        if op_type != "Const" and "PartitionedCall" not in op_type
    ]
    reason = _REASON.search(message)
    if not places or reason is None:
        return f"{model_name!r} cannot be converted to TensorFlow Lite: {message}"
    op_type, name = places[-1]
    return (
        f"{model_name!r}: layer {layer_of(name)!r} ({op_type}) cannot be converted to "
        f"TensorFlow Lite: {reason.group(0).strip()}. {remedy(op_type)}."
    )


def _write(
    path: pathlib.Path,
    content: bytes,
    operations: list[str],
    largest_error: dict[str, float],
) -> ExportReport:
    with atomic_write(path) as file:
        file.write(content)
    return ExportReport(path, len(content), operations, largest_error)


@contextlib.contextmanager
def _quiet_converter() -> Iterator[None]:
    """Leaves out warnings that gradients are not saved: none is wanted there."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)

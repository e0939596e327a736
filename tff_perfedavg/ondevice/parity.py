"""Numerical parity check of an exported file against TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tff_perfedavg import errors
from tff_perfedavg.models.model import Batch, Model
from tff_perfedavg.ondevice.config import ExportConfig
from tff_perfedavg.ondevice.deployment import Deployment
from tff_perfedavg.ondevice.runner import in_order
from tff_perfedavg.optimization.local_update import local_update

TOLERANCE = 1e-5
# The runtime computes a quantized body with quantized inputs, too.
QUANTIZED_TOLERANCE = 0.1
_RATE = 0.01
_NUM_ADAPTS = 3
_NUM_STEPS = 2
_NUM_TRIES = 3
_RUNTIMES = {"tensorflow": tf.lite.Interpreter, "litert": Interpreter}

# From a signature's name and its inputs to its outputs.
Call = Callable[..., dict[str, np.ndarray]]


def check(
    model: Model,
    weights: Sequence[np.ndarray],
    config: ExportConfig,
    content: bytes,
    examples: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, float]:
    """Replays a file in each runtime; returns the largest difference by runtime.

    TensorFlow's side uses its own gradients and losses, no replacement. A replay that
    differs is repeated with other rows.

    Args:
      model: the model.
      weights: what was trained: the model's weights, with learned rates behind them.
      config: what the file can do.
      content: the file.
      examples: rows (x, y) to replay with; None for random ones in [0, 1).

    Raises:
      ModelError: if a difference is too large, or not a number.
    """
    for seed in range(_NUM_TRIES - 1):
        # Near the kink of a ReLU or a maximum, rounding decides which side counts.
        # That is rare, and no error; an error is there with any rows.
        with contextlib.suppress(errors.ModelError):
            return _compare(model, weights, config, content, examples, seed)
    return _compare(model, weights, config, content, examples, _NUM_TRIES - 1)


def _compare(model, weights, config, content, examples, seed) -> dict[str, float]:
    rows = _draw_rows(model, config, examples, seed)
    expected = _expected(model, weights, config, rows)
    deployed = Deployment(model, weights, config)
    tolerance = QUANTIZED_TOLERANCE if config.quantize_frozen else TOLERANCE
    largest = {}
    for name, runtime in _RUNTIMES.items():
        interpreter = runtime(model_content=content)

        def call(signature, interpreter=interpreter, **inputs):
            return interpreter.get_signature_runner(signature)(**inputs)

        try:
            found = _replay(call, deployed, config, rows)
        except (RuntimeError, ValueError) as e:
            raise errors.ModelError(
                f"{model.name!r}: the exported file does not run in {name}'s runtime "
                f"({e}). Nothing was written."
            ) from e
        differences = {key: _largest(found[key], expected[key]) for key in expected}
        largest[name] = max(differences.values())
        # Not a number is no small difference.
        wrong = [key for key, d in differences.items() if not d <= tolerance]
        if wrong:
            raise errors.ModelError(
                f"{model.name!r}: the exported file differs from TensorFlow in "
                f"{name}'s runtime by {largest[name]:.2g} in {', '.join(wrong)}; at "
                f"most {tolerance:g} is allowed. Nothing was written."
            )
    return largest


def largest_inference_error(
    model: Model, weights: Sequence[np.ndarray], content: bytes, x: np.ndarray
) -> dict[str, float]:
    """Returns the largest error of a file's `infer` against TensorFlow, by runtime.

    Args:
      model: the model.
      weights: the weights that the file holds.
      content: the file.
      x: `[rows, ...]`.
    """
    outputs = model.apply([tf.constant(w) for w in weights], tf.constant(x))
    if model.num_classes is not None:
        outputs = tf.nn.softmax(outputs)
    largest = {}
    for name, runtime in _RUNTIMES.items():
        infer = runtime(model_content=content).get_signature_runner("infer")
        size = infer.get_input_details()["x"]["shape"][0]
        found = [
            next(
                iter(infer(x=np.resize(x[i : i + size], [size, *x.shape[1:]])).values())
            )
            for i in range(0, len(x), size)
        ]
        largest[name] = _largest([np.concatenate(found)[: len(x)]], [outputs.numpy()])
    return largest


def _largest(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference, relative where numbers are above 1, as losses can be."""
    scale = max(1.0, *(np.abs(e).max() for e in expected))
    differences = [np.abs(f - e).max() for f, e in zip(found, expected, strict=True)]
    # NaN is kept by numpy's maximum.
    return float(np.max(differences)) / scale


def _draw_rows(model: Model, config: ExportConfig, examples, seed: int):
    """Steps of batches `[steps, roles, batch, ...]` with a padded row in each."""
    rng = np.random.default_rng(seed)
    num_roles = len(config.algorithm.roles)
    shape = (max(config.max_local_steps, 1), num_roles, config.batch_size)
    if examples is not None:
        x, y = (np.asarray(part) for part in examples)
        chosen = rng.integers(len(x), size=shape)
        x, y = x[chosen], y[chosen]
    else:
        x = rng.random((*shape, *model.input_spec.shape[1:]))
        of_label = (*shape, *model.label_spec.shape[1:])
        if model.num_classes is None:
            y = rng.random(of_label)
        else:
            y = rng.integers(model.num_classes, size=of_label)
    x = x.astype(model.input_spec.dtype.as_numpy_dtype)
    y = y.astype(model.label_spec.dtype.as_numpy_dtype)
    if config.batch_size > 1:
        y[:, :, -1] = -1 if model.num_classes is not None else np.nan
    return x, y


def _replay(call: Call, deployed: Deployment, config: ExportConfig, rows):
    """Returns outputs of a LiteRT runtime, from the initial weights on."""
    x, y = rows
    unused = np.zeros([1], np.float32)
    rate = np.array([_RATE], np.float32)
    batch = {"x": x[0, 0], "y": y[0, 0], "learning_rate": rate}
    few = _rows_to_infer(x, config)
    found = {"infer": list(call("infer", x=few).values())}
    found["adapt loss"] = [call("adapt", **batch)["loss"] for _ in range(_NUM_ADAPTS)]
    call("adapt_steps", **batch, num_steps=np.array([_NUM_STEPS], np.int32))
    found["adapted weights"] = in_order(call("get_weights", unused=unused), "weight")
    found["infer when adapted"] = list(call("infer", x=few).values())
    call("reset", unused=unused)
    found["weights after reset"] = in_order(
        call("get_weights", unused=unused), "weight"
    )
    if config.max_guarded_steps:
        answer = call(
            "adapt_guarded", **batch, **_to_check(x, y), num_steps=_few(config)
        )
        found["guarded losses"] = [answer["losses"][: _few(config)[0] + 1]]
        found["guarded weights"] = in_order(
            call("get_weights", unused=unused), "weight"
        )
    shifted = {
        f"weight_{i}": w + np.float32(0.01) for i, w in enumerate(deployed.weights)
    }
    call("set_weights", **shifted)
    found["infer with weights set"] = list(call("infer", x=few).values())
    if config.max_local_steps:
        batches: dict[str, np.ndarray] = {}
        for number, role in enumerate(config.algorithm.roles):
            batches |= {f"x_{role}": x[:, number], f"y_{role}": y[:, number]}
        answer = call(
            "meta_update",
            **{f"weight_{i}": w for i, w in enumerate(deployed.sent)},
            **batches,
            **dict.fromkeys(config.algorithm.RATES, rate),
            num_steps=np.array([config.max_local_steps], np.int32),
        )
        found["meta_update"] = in_order(answer, "delta")
        measures = config.algorithm.build().measures
        found["meta_update losses"] = [answer[name] for name in measures]
    return found


def _to_check(x, y) -> dict[str, np.ndarray]:
    """Rows to check on, other ones than those to learn from if there are any."""
    return {"x_check": x[-1, -1], "y_check": y[-1, -1]}


def _few(config: ExportConfig) -> np.ndarray:
    """How many steps are guarded."""
    return np.array([min(_NUM_STEPS, config.max_guarded_steps)], np.int32)


def _rows_to_infer(x, config: ExportConfig) -> np.ndarray:
    """As many rows as `infer` takes, over again where a batch has fewer."""
    return np.resize(x[0, 0], [config.infer_batch_size, *x.shape[3:]])


def _expected(model: Model, weights, config: ExportConfig, rows):
    """Returns the reference outputs in TensorFlow."""
    x, y = rows
    deployed = Deployment(model, weights, config)
    head, start = deployed.weights, [tf.constant(w) for w in deployed.weights]

    def batch_at(step, role):
        return _with_mask(model, tf.constant(x)[step, role], tf.constant(y)[step, role])

    few = _rows_to_infer(x, config)

    @tf.function
    def infer(trainable):
        outputs = deployed.model.apply(trainable, tf.constant(few))
        return outputs if model.num_classes is None else tf.nn.softmax(outputs)

    @tf.function
    def adapt(trainable):
        adaptation = dataclasses.replace(deployed.adaptation, learning_rate=_RATE)
        loss = deployed.model.batch_loss
        return adaptation.step(loss, trainable, batch_at(0, 0), start)

    @tf.function
    def check_loss(trainable):
        return deployed.model.batch_loss(trainable, batch_at(-1, -1))

    @tf.function
    def update():
        algorithm = config.algorithm.build(
            **dict.fromkeys(config.algorithm.RATES.values(), _RATE)
        )

        def draw(step):
            return [batch_at(step, role) for role in range(len(algorithm.roles))]

        sent = [tf.constant(p) for p in deployed.sent]
        trained = local_update(deployed.sent_model.batch_loss, sent, draw, algorithm)
        return algorithm.update(sent, trained.state), list(trained.measures.values())

    expected: dict[str, Sequence] = {"infer": [infer(head)]}
    adapted, losses = head, []
    for _ in range(_NUM_ADAPTS + _NUM_STEPS):
        value, adapted = adapt(adapted)
        losses.append(value)
    expected["adapt loss"] = losses[:_NUM_ADAPTS]
    expected["adapted weights"] = adapted
    expected["infer when adapted"] = [infer(adapted)]
    expected["weights after reset"] = head
    if config.max_guarded_steps:
        steps = _few(config)[0]
        expected |= _expected_guard(steps, head, lambda w: adapt(w)[1], check_loss)
    expected["infer with weights set"] = [infer([w + 0.01 for w in head])]
    if config.max_local_steps:
        expected["meta_update"], expected["meta_update losses"] = update()
    return {key: [np.asarray(t) for t in value] for key, value in expected.items()}


def _expected_guard(steps, first, adapted, check_loss) -> dict[str, Sequence]:
    """Returns the reference result of guarded adaptation."""
    tried = [first]
    for _ in range(steps):
        tried.append(adapted(tried[-1]))
    losses = np.array([check_loss(weights) for weights in tried])
    best = tried[int(np.argmin(losses))]
    return {"guarded losses": [losses], "guarded weights": best}


def _with_mask(model: Model, x: tf.Tensor, y: tf.Tensor) -> Batch:
    """Rows of which those without a label count for nothing."""
    is_padding = (
        tf.reduce_any(tf.math.is_nan(y), list(range(1, y.shape.rank)))
        if model.num_classes is None
        else y < 0
    )
    shape = [-1] + [1] * (y.shape.rank - 1)
    y = tf.where(tf.reshape(is_padding, shape), tf.zeros_like(y), y)
    return Batch(x, y, 1.0 - tf.cast(is_padding, tf.float32))

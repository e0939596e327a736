"""Exported files: refused or proved at export, and equal to the mathematics after."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import family_reference, reference
from tests.helpers import relative_error, rows_of
from tests.needs import needs_data, slow_but
from tff_perfedavg import errors
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.algorithms.registry import LocalSettings
from tff_perfedavg.models.convolutional import char_cnn, cnn, conv1d
from tff_perfedavg.models.dense import logistic_regression, mlp, mlp_regressor
from tff_perfedavg.models.four_blocks import conv4
from tff_perfedavg.models.keras_model import from_keras
from tff_perfedavg.ondevice import export, flatbuffer, gradients, seal
from tff_perfedavg.ondevice.config import ExportConfig
from tff_perfedavg.ondevice.export import (
    check_exportable,
    export_inference,
    export_tflite,
    showing_progress,
)
from tff_perfedavg.ondevice.runner import OnDeviceModel
from tff_perfedavg.ondevice.signatures import DeviceModule
from tff_perfedavg.optimization.hessian import VARIANTS

layers = tf.keras.layers
SMALL = mlp((4,), 3, hidden=(5,))
BY_HAND = reference.TwoLayerNetwork()
RATE = 0.1


def three_batches(variant="exact"):
    """Settings of local steps of which each may take a batch of every role."""
    return LocalSettings(variant=variant, options={"hessian_batch": "own"})


# Weights stay finite at such a rate, and answers do not.
TOO_LARGE = 1e30
DATA = pathlib.Path(__file__).parent / "data"
MODELS = {
    "logistic_regression": logistic_regression((64,), 10),
    "mlp": mlp((28, 28), 10),
    "cnn": cnn((28, 28), 10),
    "conv4": conv4((28, 28), 5, filters=6),
    "conv1d": conv1d((128, 9), 6),
    "char_cnn": char_cnn((40,), 65),
    "mlp_regressor": mlp_regressor((8,), 2),
}
IMAGES, SEQUENCE = (9, 9, 2), (6, 3)


class CalledFunction(layers.Layer):
    """A layer that computes in a function of its own."""

    @tf.function(autograph=False)
    def call(self, x):
        return tf.nn.elu(x) * tf.sigmoid(x)


def frozen(layer):
    layer.trainable = False
    return layer


KERAS = {
    "activations": [
        (12,),
        layers.Dense(9, "tanh"),
        layers.Dense(8, "sigmoid"),
        layers.Dense(7, "swish"),
        layers.LeakyReLU(),
        layers.Dense(6, tf.nn.relu6),
    ],
    "images": [
        (14, 14, 2),
        layers.Conv2D(8, 3, activation="relu"),
        layers.MaxPool2D(),
        layers.Conv2D(8, 3, padding="same", strides=2, activation="elu"),
        layers.AveragePooling2D(),
        layers.Flatten(),
    ],
    "separable": [
        (10, 10, 2),
        layers.Conv2D(6, 3),
        layers.BatchNormalization(trainable=False),
        layers.SeparableConv2D(4, 3, activation="relu"),
        layers.Conv2DTranspose(3, 3, strides=2),
        layers.GlobalAveragePooling2D(),
    ],
    "sequences": [
        (6,),
        layers.Embedding(10, 4),
        layers.SimpleRNN(5, unroll=True),
    ],
    "normalized": [(8,), layers.Dense(6), layers.GroupNormalization(2)],
    "more activations": [
        (8,),
        layers.Dense(7, "hard_sigmoid"),
        layers.PReLU(),
        layers.Dense(6, "exponential"),
        layers.Dense(5, "softmax"),
        layers.Dense(4, lambda x: tf.keras.activations.gelu(x, approximate=True)),
        layers.UnitNormalization(),
    ],
    "more images": [
        (8, 8, 2),
        layers.UpSampling2D(),
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.Reshape((196, 4)),
        layers.GroupNormalization(2),
        layers.Reshape((14, 14, 4)),
        layers.ZeroPadding2D(),
        layers.MaxPool2D(),
        layers.Conv2D(3, 3),
        layers.Cropping2D(),
        layers.Permute((3, 1, 2)),
        layers.GlobalMaxPool2D(),
    ],
    "more sequences": [
        (8, 3),
        layers.Conv1D(4, 3, padding="causal"),
        layers.GroupNormalization(2),
        layers.SeparableConv1D(4, 2, padding="same"),
        layers.MaxPool1D(),
        layers.Conv1DTranspose(3, 2, strides=2),
        layers.AveragePooling1D(),
        layers.UpSampling1D(),
        layers.TimeDistributed(layers.Dense(3)),
        layers.GlobalAveragePooling1D(),
    ],
    "branches": [
        (3, 4),
        lambda x: layers.Add()([layers.Dense(4)(x), x]),
        lambda x: layers.Concatenate()([layers.Attention()([x, x]), x]),
        layers.Flatten(),
        layers.Dense(2),
        layers.RepeatVector(2),
    ],
    "recurrent": [(2, 3), layers.LSTM(3, unroll=True)],
    "grouped, strided, normalized": [
        IMAGES,
        layers.Conv2D(4, 3, groups=2, padding="same"),
        layers.DepthwiseConv2D(3, strides=2, padding="same"),
        layers.GroupNormalization(2),
        layers.MaxPool2D(3, 2, padding="same"),
        layers.AveragePooling2D(2, 1, padding="same"),
        layers.LayerNormalization(axis=[1, 2, 3]),
    ],
    "dilated": [
        IMAGES,
        layers.Conv2D(4, 3, dilation_rate=2, activation="softplus"),
        layers.SeparableConv2D(4, 2, strides=2),
        layers.DepthwiseConv2D(2, dilation_rate=2, padding="same"),
        layers.Reshape((4, 4)),
        layers.Conv1D(3, 2, dilation_rate=2, padding="causal", activation="selu"),
    ],
    "attention of several heads": [
        SEQUENCE,
        lambda x: layers.Add()([layers.MultiHeadAttention(2, 3)(x, x), x]),
        layers.LayerNormalization(),
        layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d"),
        layers.Dense(3, "gelu"),
        layers.Dense(3, "softsign"),
    ],
    "masked and gated": [
        (3, 2),
        layers.Masking(),
        layers.Bidirectional(layers.SimpleRNN(2, unroll=True, return_sequences=True)),
        layers.GRU(2, unroll=True),
    ],
    "reset before": [(2, 3), layers.GRU(3, unroll=True, reset_after=False)],
    "masked words": [
        (3,),
        layers.Embedding(10, 4, mask_zero=True),
        layers.SimpleRNN(4, unroll=True),
    ],
    "volumes": [(5, 4, 5, 1), layers.Conv3D(3, 2, strides=2, padding="same")],
    "frozen recurrent": [
        SEQUENCE,
        frozen(layers.LSTM(4, return_sequences=True)),
        frozen(layers.GRU(4)),
    ],
    "products and functions": [
        SEQUENCE,
        lambda x: layers.Dot(2)([layers.Dense(4)(x), layers.Dense(4)(x)]),
        CalledFunction(),
    ],
}
# One of each kind; the others are left to the slow tests.
QUICK_KERAS = (
    "activations",
    "images",
    "separable",
    "sequences",
    "normalized",
    "recurrent",
    "branches",
    "volumes",
    "products and functions",
)
# What is refused, how, and what the message advises.
REFUSED = {
    "recurrent": (
        [SEQUENCE, layers.GRU(5)],
        "'gru.*' needs.*unroll=True, use Conv1D layers",
        [
            SEQUENCE,
            layers.GRU(4, unroll=True),
            layers.Reshape((4, 1)),
            layers.Conv1D(2, 2),
        ],
    ),
    "resized": (
        [IMAGES, layers.Conv2D(4, 3), layers.UpSampling2D()],
        "'up_sampling2d.*' needs.*Conv2DTranspose with a stride",
        [IMAGES, layers.Conv2D(4, 3), layers.Conv2DTranspose(4, 2, strides=2)],
    ),
    "product of vectors": (
        [(8,), lambda x: layers.Dot(1)([layers.Dense(4)(x), layers.Dense(4)(x)])],
        "layer 'dot.*' .* cannot be converted .*Lambda",
        [
            (8,),
            lambda x: layers.Multiply()([layers.Dense(4)(x), layers.Dense(4)(x)]),
            layers.Lambda(lambda x: tf.reduce_sum(x, -1, keepdims=True)),
        ],
    ),
}


def keras_model(stack, classes=3):
    shape, *inner = stack
    x = inputs = tf.keras.Input(shape)
    for layer in [*inner, layers.Flatten(), layers.Dense(classes)]:
        x = layer(x)
    return from_keras(tf.keras.Model(inputs, x))


def small_batch(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[rows, 4]).astype(np.float32)
    return x, rng.integers(3, size=rows).astype(np.int32)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "small.tflite"
    config = ExportConfig(batch_size=4, max_local_steps=3, trained=three_batches())
    export_tflite(SMALL, SMALL.init(1), path, config, card={"dataset": "none"})
    return path


@pytest.fixture
def device(small_file):
    return OnDeviceModel(small_file)


@pytest.fixture
def old_device(tmp_path):
    """A model that version 0.1.0 exported: the weights of `small_file`."""
    path = tmp_path / "old.tflite"
    shutil.copy(DATA / "version_0_1_0.tflite", path)
    return OnDeviceModel(path)


def call_adapt(device, signature="adapt", rate=RATE, **inputs):
    """Calls a signature as an app may, past the checks of the client."""
    x, y = small_batch()
    inputs = {"x": x, "y": y, "learning_rate": np.array([rate], np.float32), **inputs}
    return device.call(signature, **inputs)


def call_meta_update(device, num_steps=3, rate=RATE, **inputs):
    inputs["num_steps"] = np.array([num_steps], np.int32)
    inputs["inner_learning_rate"] = np.array([RATE], np.float32)
    inputs["outer_learning_rate"] = np.array([rate], np.float32)
    for number, role in enumerate(("support", "query", "hessian")):
        x, y = small_batch(seed=number)
        inputs.setdefault(f"x_{role}", np.stack([x] * 3))
        inputs.setdefault(f"y_{role}", np.stack([y] * 3))
    for i, weight in enumerate(SMALL.init(1)):
        inputs.setdefault(f"weight_{i}", weight)
    return device.call("meta_update", **inputs)


def deltas_of(answer):
    return np.concatenate([d.ravel() for k, d in answer.items() if "delta" in k])


# ---------------------------------------------------------------- export and gate


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        # Every model, and every variant twice; the rest is left to the slow ones.
        pytest.param(
            name,
            variant,
            marks=() if (i - j) % len(VARIANTS) == 1 else pytest.mark.slow,
        )
        for i, name in enumerate(MODELS)
        for j, variant in enumerate(VARIANTS)
    ],
)
def test_models_pass_the_gate(tmp_path, name, variant):
    model = MODELS[name]
    examples = None
    if name == "char_cnn":
        rng = np.random.default_rng(0)
        x = rng.integers(65, size=[50, 40]).astype(np.float32)
        examples = x, rng.integers(65, size=50)
    report = export_tflite(
        model,
        model.init(0),
        tmp_path / "model.tflite",
        ExportConfig(batch_size=8, max_local_steps=3, variant=variant),
        examples=examples,
    )
    assert set(report.largest_error) == {"tensorflow", "litert"}
    assert max(report.largest_error.values()) < 1e-5
    assert report.num_bytes == report.path.stat().st_size
    content = flatbuffer.read(report.path.read_bytes())
    found = flatbuffer.operations(content)
    assert "WHILE" in found
    assert not any(name.startswith("CUSTOM") for name in found)


@pytest.mark.parametrize(
    "name",
    # What each override of a gradient gives is in test_device_gradients.
    slow_but(QUICK_KERAS, KERAS),
)
def test_keras_models_pass_the_gate(tmp_path, name):
    model = keras_model(KERAS[name])
    config = ExportConfig(batch_size=5, max_local_steps=2)
    path = tmp_path / "model.tflite"
    report = export_tflite(model, model.init(0), path, config)
    assert max(report.largest_error.values()) < 1e-5


def test_a_keras_regressor_passes_the_gate(tmp_path):
    inputs = tf.keras.Input((5,))
    outputs = layers.Dense(1)(layers.Dense(4, "tanh")(inputs))
    model = from_keras(tf.keras.Model(inputs, outputs), is_regressor=True)
    assert (model.num_classes, model.label_spec.shape.as_list()) == (None, [None, 1])
    path = tmp_path / "model.tflite"
    report = export_tflite(
        model, model.init(0), path, ExportConfig(batch_size=4, max_local_steps=1)
    )
    assert max(report.largest_error.values()) < 1e-5
    device = OnDeviceModel(path)
    x = np.random.default_rng(0).normal(size=[4, 5]).astype(np.float32)
    # The mean squared error, by hand.
    expected = np.mean((device.infer(x) - 2.0) ** 2)
    assert device.adapt(x, np.full([4, 1], 2.0), 0.1) == pytest.approx(expected)


def test_whether_a_model_can_be_exported_is_told_before_training(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(export, "_PATIENCE_S", 0.0)
    with showing_progress():
        check = check_exportable(SMALL, ExportConfig(batch_size=4))
    path = tmp_path / "model.tflite"
    # Not shown unless it is asked for.
    report = export_tflite(SMALL, SMALL.init(0), path, ExportConfig(batch_size=4))
    assert check.operations == report.operations
    assert abs(check.num_bytes - report.num_bytes) < 200
    assert capsys.readouterr().err.count("Export: 10/10 steps") == 1
    stack, message, _ = REFUSED["recurrent"]
    with pytest.raises(errors.ModelError, match=message):
        check_exportable(keras_model(stack))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_device_cannot_train_is_refused_by_layer(tmp_path, name):
    stack, message, _ = REFUSED[name]
    model = keras_model(stack)
    path = tmp_path / "model.tflite"
    with pytest.raises(errors.ModelError, match=message):
        export_tflite(model, model.init(0), path, ExportConfig(max_local_steps=2))
    assert not path.exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_advised_instead_is_not_refused(name):
    *_, advised = REFUSED[name]
    model = keras_model(advised)
    config = ExportConfig(batch_size=3, max_local_steps=1)
    assert DeviceModule(model, model.init(0), config, b"{}").signatures()


def test_what_cannot_be_trained_can_be_frozen(tmp_path):
    stack, *_ = REFUSED["recurrent"]
    model = keras_model(stack)
    path = tmp_path / "model.tflite"
    message = r"or freeze the weights up to it \(ExportConfig.num_trainable\)"
    config = ExportConfig(batch_size=3, max_local_steps=0)
    with pytest.raises(errors.ModelError, match=message):
        export_tflite(model, model.init(0), path, config)
    config = ExportConfig(batch_size=3, max_local_steps=1, num_trainable=2)
    export_tflite(model, model.init(0), path, config)


def test_images_normalized_as_sequences_are_normalized_the_same():
    x = np.random.default_rng(0).normal(size=[2, 6, 6, 4]).astype(np.float32)
    expected = layers.GroupNormalization(2)(x)
    found = layers.GroupNormalization(2)(x.reshape(2, 36, 4))
    assert np.allclose(tf.reshape(found, expected.shape), expected, atol=1e-6)


def test_a_wrong_gradient_does_not_pass_the_gate(tmp_path, monkeypatch):
    monkeypatch.setitem(gradients.OVERRIDES, "Elu", gradients.OVERRIDES["Relu"])
    path = tmp_path / "model.tflite"
    config = ExportConfig(max_local_steps=0, max_guarded_steps=0)
    with pytest.raises(errors.ModelError, match=r"differs from TensorFlow.*adapt"):
        export_tflite(SMALL, SMALL.init(1), path, config)
    assert not path.exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (SMALL.init(0)[:-1], "takes weights of shapes"),
        ([w * np.nan for w in SMALL.init(0)], "a weight is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, weights, message):
    with pytest.raises(errors.ModelError, match=message):
        export_tflite(SMALL, weights, tmp_path / "model.tflite")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "mixed_float16",
            r"'sequential.*' does not compute in float32.*mixed_precision",
        ),
        (
            "float64",
            r"'sequential.*': weight 0 is float64; a device computes in float32",
        ),
    ],
)
def test_other_arithmetic_than_float32_is_refused(tmp_path, policy, message):
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        network = tf.keras.Sequential([tf.keras.Input([4]), layers.Dense(3)])
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    model = from_keras(network)
    with pytest.raises(errors.ModelError, match=message):
        export_tflite(model, model.init(0), tmp_path / "model.tflite")


def test_a_card_does_not_replace_what_the_export_says(tmp_path):
    with pytest.raises(
        errors.ConfigError, match="card has batch_size, model_id, which"
    ):
        export_tflite(
            SMALL,
            SMALL.init(0),
            tmp_path / "model.tflite",
            card={"batch_size": 1, "model_id": "", "license": "MIT"},
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"max_local_steps": -1}, "max_local_steps is -1"),
        ({"variant": "second"}, "variant is 'second'; known: fed_avg, first_order, "),
        ({"storage": "int4"}, "storage is 'int4'; known: float32"),
        ({"num_trainable": 0}, "num_trainable is 0"),
        (
            {"batch_size": 10**6 + 1},
            "batch_size is 1000001; it must be at most 1000000",
        ),
        ({"infer_batch_size": 10**9}, "infer_batch_size is 1000000000; it must be at"),
        ({"max_local_steps": 10**6}, "max_local_steps is 1000000, with 40 rows a step"),
        ({"batch_size": 10**6}, "at most 1000000 rows at once. Take fewer steps"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(errors.ConfigError, match=message):
        ExportConfig(**options)


def test_the_largest_options_are_taken():
    ExportConfig(10**6, 10**6, max_local_steps=0)
    ExportConfig(50_000, max_local_steps=10, variant="first_order")


def test_more_trainable_tensors_than_there_are_are_refused(tmp_path):
    message = "num_trainable is 5, but the model has 4 weight tensors; give at most 4"
    with pytest.raises(errors.ConfigError, match=message):
        export_tflite(
            SMALL, SMALL.init(0), tmp_path / "m.tflite", ExportConfig(num_trainable=5)
        )
    # A run tells how many there are, its learned rates left out.
    trained = LocalSettings(algorithm="meta_sgd")
    with pytest.raises(errors.ConfigError, match=message):
        ExportConfig(num_trainable=5).of_run(trained, [*SMALL.init(0), np.zeros([4])])


def test_all_tensors_adapt_where_training_adapted_the_head(tmp_path):
    anil = LocalSettings(algorithm="anil", inner_learning_rate=0.1)
    config = ExportConfig(4, max_local_steps=0, num_trainable=4)
    config = config.of_run(anil, SMALL.init(1))
    (told,) = [t for t in config.differences() if "num_trainable" in t]
    assert "the file adapts all weight tensors, and training adapted the last 2" in told
    path = tmp_path / "m.tflite"
    export_tflite(SMALL, SMALL.init(1), path, config)
    device = OnDeviceModel(path)
    assert device.card["adaptation"]["moves"] == "all"
    x, y = small_batch()
    device.adapt(x, y, 0.1)
    weights = [w.astype(float) for w in SMALL.init(1)]
    after = family_reference.user_steps(BY_HAND, weights, (x, y), 0.1, 1, range(4))[-1]
    assert relative_error(device.weights, after) < 1e-5
    # Of a run that adapts all, it changes nothing.
    plain = ExportConfig(20, num_trainable=4).of_run(LocalSettings(), SMALL.init(1))
    assert plain.differences() == []
    config = dataclasses.replace(config, quantize_frozen=True)
    message = "quantize_frozen is set, but nothing of 'mlp' is frozen; give num_train"
    for check in (
        lambda: export_tflite(SMALL, SMALL.init(1), path, config),
        lambda: export.check_exportable(SMALL, config),
    ):
        with pytest.raises(errors.ConfigError, match=message):
            check()


def test_the_card_is_in_the_metadata_and_in_describe(device):
    answer = device.call("describe", unused=np.zeros([1], np.float32))
    assert bytes(answer["card"]) == bytes(
        flatbuffer.metadata(flatbuffer.read(device._path.read_bytes()), flatbuffer.CARD)
    )
    assert device.card["dataset"] == "none"
    assert device.card["input_shape"] == [4]
    assert device.card["versions"]["tensorflow"] == tf.__version__


def test_weights_are_kept_once_and_where_they_can_be_mapped(small_file):
    content = small_file.read_bytes()
    kernel = SMALL.init(1)[0].tobytes()
    assert content.count(kernel) == 1
    assert content.index(kernel) % 16 == 0


# -------------------------------------------------------------- numbers of a device


def test_adaptation_equals_the_float64_reference(device):
    x, y = small_batch()
    weights = [w.astype(np.float64) for w in SMALL.init(1)]
    for _ in range(3):
        expected_loss = BY_HAND.loss(weights, x, y)
        assert np.isclose(device.adapt(x, y, RATE), expected_loss, atol=1e-6)
        weights = reference.axpy(-RATE, BY_HAND.gradient(weights, x, y), weights)
    assert relative_error(device.weights, weights) < 1e-5
    logits = BY_HAND.logits(weights, x)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(device.infer(x), expected, atol=1e-6)
    device.reset()
    assert relative_error(device.weights, SMALL.init(1)) == 0
    device.adapt(x, y, RATE, num_steps=3)
    assert relative_error(device.weights, weights) < 1e-5


def test_a_short_batch_is_padded_and_counts_its_own_rows(device):
    x, y = small_batch(rows=3)
    expected = BY_HAND.loss([w.astype(np.float64) for w in SMALL.init(1)], x, y)
    assert np.isclose(device.adapt(x, y, RATE), expected, atol=1e-6)


@pytest.fixture(scope="module", params=VARIANTS)
def of_variant(request, tmp_path_factory):
    """A variant, and a file whose `meta_update` takes its steps."""
    path = tmp_path_factory.mktemp("of_variant") / "model.tflite"
    config = ExportConfig(
        4, max_local_steps=3, max_guarded_steps=0, trained=three_batches(request.param)
    )
    export_tflite(SMALL, SMALL.init(0), path, config)
    return request.param, path


@pytest.mark.parametrize("num_steps", [1, 3])
def test_meta_update_equals_the_float64_reference(of_variant, num_steps):
    variant, path = of_variant
    device = OnDeviceModel(path)
    server = SMALL.init(1)
    roles = ("support", "query", "hessian")
    steps = [
        {role: small_batch(4 - i, seed=10 * step + i) for i, role in enumerate(roles)}
        for step in range(num_steps)
    ]
    update, support_loss, _ = device.meta_update(server, steps, RATE, 0.05)
    start = [w.astype(np.float64) for w in server]
    local = PerFedAvgConfig(RATE, 0.05, variant=variant, hessian_batch="own")
    trained = reference.local_weights(
        BY_HAND, start, [[step[role] for role in roles] for step in steps], local
    )
    expected = reference.axpy(-1, trained, start)
    # The Hessian-free form divides a difference of float32 gradients.
    assert relative_error(update, expected) < (1e-3 if "free" in variant else 1e-5)
    if num_steps == 1:
        first = BY_HAND.loss(start, *steps[0]["support"])
        assert np.isclose(support_loss, first, atol=1e-6)
    # The device's own weights are no part of it.
    assert relative_error(device.weights, SMALL.init(0)) == 0


def test_half_precision_starts_from_rounded_weights(tmp_path):
    model = MODELS["mlp"]
    sizes = {}
    for storage in ("float32", "float16"):
        path = tmp_path / f"{storage}.tflite"
        config = ExportConfig(storage=storage, max_local_steps=0)
        export_tflite(model, model.init(0), path, config)
        sizes[storage] = path.stat().st_size
    rounded = [w.astype(np.float16).astype(np.float32) for w in model.init(0)]
    assert relative_error(OnDeviceModel(path).weights, rounded) == 0
    num_bytes = sum(w.nbytes for w in model.init(0))
    assert sizes["float32"] - sizes["float16"] > 0.49 * num_bytes


@pytest.mark.parametrize("quantize", [False, True])
def test_the_head_alone_adapts(tmp_path, quantize):
    model = MODELS["mlp"]
    path = tmp_path / "head.tflite"
    config = ExportConfig(num_trainable=2, quantize_frozen=quantize)
    report = export_tflite(model, model.init(0), path, config)
    device = OnDeviceModel(path)
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 28, 28)), rng.integers(10, size=20)
    before = device.infer(x)
    losses = [device.adapt(x, y, 0.5) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert [w.shape for w in device.weights] == [(60, 10), (10,)]
    device.reset()
    assert np.array_equal(device.infer(x), before)
    if quantize:
        assert report.num_bytes < 0.5 * sum(w.nbytes for w in model.init(0))


def test_a_quantized_file_for_inference(tmp_path):
    model = MODELS["mlp"]
    weights = model.init(0)
    rng = np.random.default_rng(0)
    examples = rng.random((30, 28, 28), np.float32), rng.integers(10, size=30)
    path = tmp_path / "fixed.tflite"
    report = export_inference(model, weights, path, examples)
    assert 0 < max(report.largest_error.values()) < 0.05
    assert report.num_bytes < 0.3 * sum(w.nbytes for w in weights)
    device = OnDeviceModel(path)
    assert sorted(device.signatures) == ["describe", "infer"]
    logits = model.apply(weights, tf.constant(examples[0]))
    assert np.allclose(device.infer(examples[0]), tf.nn.softmax(logits), atol=0.05)


# ------------------------------------------------------- personal weights on disk


def test_personal_weights_are_saved_and_loaded(small_file, device, tmp_path):
    device.adapt(*small_batch(), RATE)
    device.save(tmp_path / "personal.bin")
    other = OnDeviceModel(small_file)
    other.load(tmp_path / "personal.bin")
    assert relative_error(other.weights, device.weights) == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_personal_weights_are_refused(small_file, tmp_path_factory, data):
    device = OnDeviceModel(small_file)
    path = tmp_path_factory.mktemp("damaged") / "personal.bin"
    device.save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    device.adapt(*small_batch(), RATE)
    before = device.weights
    with pytest.raises(errors.CheckpointError, match=r"personal.bin"):
        device.load(path)
    assert relative_error(device.weights, before) == 0


def test_personal_weights_survive_an_export_of_the_same_model(device, tmp_path):
    """Another licence, batch size, storage or number of local steps is no other."""
    device.adapt(*small_batch(), RATE)
    device.save(tmp_path / "personal.bin")
    again = tmp_path / "again.tflite"
    config = ExportConfig(batch_size=6, max_local_steps=0, storage="float16")
    export_tflite(SMALL, SMALL.init(1), again, config, card={"license": "MIT"})
    other = OnDeviceModel(again)
    assert other.card["model_id"] == device.card["model_id"]
    other.load(tmp_path / "personal.bin")
    assert relative_error(other.weights, device.weights) == 0


def test_files_of_version_0_1_0_adapt_as_they_did(old_device, device, tmp_path):
    x, y = small_batch()
    assert old_device.card["format_version"] == 1
    old_device.load(DATA / "version_0_1_0.weights.bin")
    old_device.reset()
    for model in (old_device, device):
        model.adapt(x, y, RATE, num_steps=3)
    assert relative_error(old_device.weights, device.weights) < 1e-6
    assert np.allclose(old_device.infer(x), device.infer(x), atol=1e-6)
    with pytest.raises(errors.DataError, match="not finite; the weights are as before"):
        old_device.adapt(x, y, TOO_LARGE)
    assert relative_error(old_device.weights, device.weights) < 1e-6
    old_device.save(tmp_path / "personal.bin")
    assert (tmp_path / "personal.bin").read_bytes().startswith(b"PFAW0001")
    old_device.reset()
    old_device.load(tmp_path / "personal.bin")
    assert relative_error(old_device.weights, device.weights) < 1e-6
    # It may be of another initial model, for all that the file says.
    with pytest.raises(errors.CheckpointError, match="the very file it was saved with"):
        device.load(tmp_path / "personal.bin")


def test_a_place_that_cannot_be_written_is_named(device, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CheckpointError, match=r"cannot be written to .*own.bin"):
        device.save(tmp_path / "file" / "own.bin")


def test_personal_weights_of_another_model_are_refused(device, tmp_path):
    other = tmp_path / "other.tflite"
    export_tflite(SMALL, SMALL.init(2), other, ExportConfig(max_local_steps=0))
    OnDeviceModel(other).save(tmp_path / "personal.bin")
    with pytest.raises(errors.CheckpointError, match="of another model than"):
        device.load(tmp_path / "personal.bin")
    with pytest.raises(errors.CheckpointError, match="No personal weights"):
        device.load(tmp_path / "nowhere.bin")


# ------------------------------------------------------------------------ bad input


def in_double(weights):
    return [w.astype(np.float64) for w in weights]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda d, x, y: d.infer(x[:, :3]), errors.DataError, r"x has shape \(4, 3\)"),
        (lambda d, x, y: d.infer(x[:0]), errors.DataError, "no row was given"),
        (lambda d, x, y: d.infer(x * np.inf), errors.DataError, "finite in row 0"),
        (lambda d, x, y: d.adapt(x, y[:3], 1.0), errors.DataError, "4 rows and y has"),
        (lambda d, x, y: d.adapt(x, y + 3, 1.0), errors.DataError, "from 0 to 2"),
        (lambda d, x, y: d.adapt(x, y - 3, 1.0), errors.DataError, "y has the label -"),
        (lambda d, x, y: d.adapt(x, y + 0.5, 1.0), errors.DataError, "whole numbers"),
        (lambda d, x, y: d.adapt(x, y, 0), errors.ConfigError, "learning_rate is 0"),
        (lambda d, x, y: d.adapt(x, y, -0.1), errors.ConfigError, "above 0"),
        (lambda d, x, y: d.adapt(x, y, np.nan), errors.ConfigError, "finite number"),
        (lambda d, x, y: d.adapt(x, y, 1e39), errors.ConfigError, "e.39; it must be"),
        (lambda d, x, y: d.adapt(x, y, 1.0, 0), errors.ConfigError, "num_steps is 0"),
        (
            lambda d, x, y: d.adapt(np.tile(x, [2, 1]), np.tile(y, 2), 1.0),
            errors.DataError,
            "8 rows were given; the file takes 1 to 4",
        ),
        (
            lambda d, x, y: d.set_weights([w.T for w in d.weights]),
            errors.DataError,
            "Weights have shapes",
        ),
        (
            lambda d, x, y: d.set_weights([w * np.nan for w in d.weights]),
            errors.DataError,
            "Weight 0 has a number that is not finite",
        ),
        (
            lambda d, x, y: d.meta_update(d.weights, [], 1.0, 1.0),
            errors.DataError,
            "0 steps were given; the file takes 1 to 3",
        ),
        (
            lambda d, x, y: d.meta_update(d.weights, [{"support": (x, y)}], 1.0, 1.0),
            errors.DataError,
            r"step 0 has no rows \(x, y\) of 'hessian'; give those of hessian, query",
        ),
        (
            lambda d, x, y: d.meta_update(d.weights, [{"support": None}], 1.0, 1.0),
            errors.DataError,
            "step 0 has no rows",
        ),
        (lambda d, x, y: d.adapt(x, y, 1.0, "2"), errors.ConfigError, "_steps is '2'"),
        (lambda d, x, y: d.adapt(x, y, 1.0, None), errors.ConfigError, "_steps is Non"),
        (lambda d, x, y: d.adapt(x, y, "fast"), errors.ConfigError, "rate is 'fast'"),
        (lambda d, x, y: d.set_weights(None), errors.DataError, "Weights are None"),
        (
            lambda d, x, y: d.set_weights([w * 1e39 for w in in_double(d.weights)]),
            errors.DataError,
            "Weight 0 has a number that is not finite",
        ),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(device, call, kind, message):
    with pytest.raises(kind, match=message):
        call(device, *small_batch())
    assert relative_error(device.weights, SMALL.init(1)) == 0


@pytest.mark.parametrize("signature", ["adapt", "adapt_steps"])
def test_a_step_after_which_the_batch_has_no_finite_answer_is_not_applied(
    device, signature
):
    steps = {"num_steps": np.ones([1], np.int32)} if "steps" in signature else {}
    answer = call_adapt(device, signature, rate=TOO_LARGE, **steps)
    assert answer["applied"] == 0
    assert relative_error(device.weights, SMALL.init(1)) == 0
    assert np.isfinite(device.infer(small_batch()[0])).all()
    assert call_adapt(device, signature, **steps)["applied"] == 1


def test_infinite_weights_are_not_applied(device):
    """Some runtimes round infinity down to the largest number."""
    x, _ = small_batch()
    assert call_adapt(device, x=1e30 * np.abs(x), rate=1e38)["applied"] == 0
    for value in (np.inf, -np.inf, np.nan):
        given = {
            f"weight_{i}": np.full_like(w, value) for i, w in enumerate(SMALL.init(1))
        }
        assert device.call("set_weights", **given)["done"] == 0
    assert relative_error(device.weights, SMALL.init(1)) == 0


def test_padding_alone_is_no_step(device):
    answer = call_adapt(device, y=np.array([-1, -1, 9, -1], np.int32))
    assert (answer["loss"], answer["applied"]) == (0, 0)
    assert relative_error(device.weights, SMALL.init(1)) == 0


@pytest.mark.parametrize("num_steps", [0, -1, 10_001, 2**31 - 1, -(2**31)])
def test_an_absurd_number_of_steps_is_none(device, num_steps):
    steps = np.array([num_steps], np.int32)
    assert call_adapt(device, "adapt_steps", num_steps=steps)["applied"] == 0
    assert relative_error(device.weights, SMALL.init(1)) == 0
    answer = call_meta_update(device, num_steps)
    assert answer["applied"] == 0
    assert not deltas_of(answer).any()


@pytest.mark.parametrize("num_steps", [0, 2**31, 2**32 + 1, 10_001, 1.5, np.nan])
def test_the_client_refuses_an_absurd_number_of_steps(device, num_steps):
    with pytest.raises(errors.ConfigError, match=r"num_steps is .* from 1 to 10000"):
        device.adapt(*small_batch(), RATE, num_steps)
    assert relative_error(device.weights, SMALL.init(1)) == 0


def test_features_of_padding_count_for_nothing(device):
    x, y = small_batch()
    y[[0, 2]] = -1
    expected = call_adapt(device, y=y)
    weights = device.weights
    device.reset()
    for value in (np.nan, np.inf, 1e38):
        x[[0, 2]] = value
        answer = call_adapt(device, x=x, y=y)
        assert answer["applied"] == 1
        assert answer["loss"] == expected["loss"]
        assert relative_error(device.weights, weights) == 0
        device.reset()


def test_features_of_padding_count_for_nothing_in_a_round(device):
    spoilt = {}
    for number, role in enumerate(("support", "query", "hessian")):
        x, y = small_batch(seed=number)
        y[number] = -1
        spoilt[f"y_{role}"] = np.stack([y] * 3)
        spoilt[f"x_{role}"] = np.stack([x] * 3)
    expected = deltas_of(call_meta_update(device, **spoilt))
    for number, role in enumerate(("support", "query", "hessian")):
        spoilt[f"x_{role}"][:, number] = np.nan
    answer = call_meta_update(device, **spoilt)
    assert answer["applied"] == 1
    assert np.array_equal(deltas_of(answer), expected)


def test_a_regressors_padding_counts_for_nothing(tmp_path):
    model = mlp_regressor((3,), 2, hidden=(4,))
    path = tmp_path / "regressor.tflite"
    config = ExportConfig(3, max_local_steps=1, variant="first_order")
    export_tflite(model, model.init(0), path, config)
    device = OnDeviceModel(path)
    x = np.ones([3, 3], np.float32)
    y = np.array([[1, 2], [np.nan, 2], [1, np.nan]], np.float32)
    expected = device.adapt(x[:1], y[:1], RATE)
    weights = device.weights
    device.reset()
    x[1:] = np.nan
    answer = call_adapt(device, x=x, y=y)
    assert (answer["loss"], answer["applied"]) == (np.float32(expected), 1)
    assert relative_error(device.weights, weights) == 0
    assert call_adapt(device, y=y * np.nan, x=x)["applied"] == 0


@pytest.mark.parametrize(
    "spoil",
    [
        {"rate": 1e38},
        {"x_query": np.full([3, 4, 4], np.nan, np.float32)},
        {"y_support": np.full([3, 4], -1, np.int32)},
        {"y_query": np.array([[0, 1, 2, 0], [-1] * 4, [0, 1, 2, 0]], np.int32)},
        {"weight_0": np.full([4, 5], np.nan, np.float32)},
    ],
    ids=["rate", "features", "labels", "a step", "weights"],
)
def test_an_update_that_is_none_is_marked_and_zero(device, spoil):
    answer = call_meta_update(device, **spoil)
    assert answer["applied"] == 0
    assert not deltas_of(answer).any()


def test_steps_beyond_those_asked_for_need_no_rows(device):
    labels = np.array([[0, 1, 2, 0], [-1] * 4, [-1] * 4], np.int32)
    answer = call_meta_update(device, 1, y_query=labels)
    assert answer["applied"] == 1
    assert deltas_of(answer).any()


def test_the_client_refuses_an_update_that_is_not_finite(device, old_device):
    step = dict.fromkeys(("support", "query", "hessian"), small_batch())
    for model in (device, old_device):
        with pytest.raises(errors.DataError, match="Leave this user out of the round"):
            model.meta_update(SMALL.init(1), [step], 1e38, 1e38)
        update, _, _ = model.meta_update(SMALL.init(1), [step], RATE, RATE)
        assert np.isfinite(update[0]).all()


def test_a_model_without_finite_answers_is_neither_used_nor_kept(device, tmp_path):
    x, _ = small_batch()
    dead = {f"weight_{i}": w + np.float32(1e30) for i, w in enumerate(device.weights)}
    with pytest.raises(errors.DataError, match="answers are not finite; the weights"):
        device.set_weights(list(dead.values()))
    assert relative_error(device.weights, SMALL.init(1)) == 0
    device.save(tmp_path / "before.bin")
    device.call("set_weights", **dead)
    with pytest.raises(errors.ModelError, match=r"answers are not finite; call reset"):
        device.infer(np.abs(x))
    with pytest.raises(errors.ModelError, match=r"answers are not finite; call reset"):
        device.save(tmp_path / "dead.bin")
    assert not (tmp_path / "dead.bin").exists()
    device.load(tmp_path / "before.bin")
    assert np.isfinite(device.infer(x)).all()


def test_kept_weights_without_finite_answers_are_refused(
    device, old_device, tmp_path, monkeypatch
):
    path = tmp_path / "dead.bin"
    for model in (device, old_device):
        dead = [w + np.float32(1e30) for w in model.weights]
        model.call("set_weights", **{f"weight_{i}": w for i, w in enumerate(dead)})
        with monkeypatch.context() as patch:
            # As version 0.1.0 did.
            patch.setattr(OnDeviceModel, "_check_alive", lambda *_: None)
            model.save(path)
        model.reset()
        with pytest.raises(errors.CheckpointError, match=r"dead.bin cannot be used"):
            model.load(path)
        assert relative_error(model.weights, SMALL.init(1)) == 0


def test_rows_beyond_the_models_range_are_refused_by_number(device):
    x, _ = small_batch()
    device.set_weights([10 * np.ones_like(w) for w in device.weights])
    x[2] = 3e38
    with pytest.raises(errors.DataError, match="the answer for row 2 is not finite"):
        device.infer(x)


def test_one_answer_comes_from_one_set_of_weights(device):
    x, y = small_batch()
    rows = np.tile(x[:1], [400, 1])
    before = device.infer(rows[:1])
    done = threading.Event()

    def keep_adapting():
        while not done.is_set():
            device.adapt(x, y, RATE)

    thread = threading.Thread(target=keep_adapting)
    thread.start()
    try:
        answers = [device.infer(rows) for _ in range(10)]
    finally:
        done.set()
        thread.join()
    assert [len(np.unique(answer, axis=0)) for answer in answers] == [1] * 10
    assert not np.array_equal(answers[-1][:1], before)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.zeros([2, 4], np.float32)}, r"x of float32 \[2, 4\]; it takes float"),
        ({"x": np.zeros([1, 4])}, r"x of float64 \[1, 4\]; it takes float32 \[1, 4\]"),
        ({}, "was given nothing; it takes x"),
        ({"x": np.zeros([1, 4], np.float32), "z": np.zeros(1)}, "was given x, z"),
    ],
)
def test_raw_calls_take_arrays_of_the_files_shapes_alone(device, inputs, message):
    with pytest.raises(errors.DataError, match=message):
        device.call("infer", **inputs)


def test_raw_weights_of_other_sizes_do_not_reach_the_runtime(device, old_device):
    for model in (device, old_device):
        longer = {f"weight_{i}": np.tile(w, 50) for i, w in enumerate(model.weights)}
        with pytest.raises(errors.DataError, match=r"weight_0 of float32 \[4, 250\]"):
            model.call("set_weights", **longer)
        assert relative_error(model.weights, SMALL.init(1)) == 0


def test_the_signature_itself_refuses_weights_of_other_sizes(tmp_path):
    """An app has no checks of ours; one column could be broadcast to many."""
    from ai_edge_litert.interpreter import Interpreter

    model = mlp_regressor((3,), 1, hidden=())
    path = tmp_path / "model.tflite"
    export_tflite(model, model.init(0), path, ExportConfig(max_local_steps=0))
    for runtime in (Interpreter, tf.lite.Interpreter):
        for kernel, bias in (((3, 7), (7,)), ((2, 3, 1), (2, 1)), ((2, 1), (1,))):
            interpreter = runtime(model_path=str(path))
            set_weights = interpreter.get_signature_runner("set_weights")
            with pytest.raises(RuntimeError, match="failed to prepare"):
                set_weights(
                    weight_0=np.ones(kernel, np.float32),
                    weight_1=np.ones(bias, np.float32),
                )
            found = interpreter.get_signature_runner("get_weights")(
                unused=np.zeros([1], np.float32)
            )
            assert relative_error([found["weight_0"]], [model.init(0)[0]]) == 0


@pytest.mark.parametrize("rows", [["a", "b"], [[1.0, 2.0], [1.0]], None, [1j]])
def test_what_is_no_array_of_numbers_is_refused(device, rows):
    x, _ = small_batch()
    with pytest.raises(errors.DataError, match="x is no array of numbers"):
        device.infer(rows)
    with pytest.raises(errors.DataError, match="y is no array of numbers"):
        device.adapt(x, rows, RATE)


@pytest.mark.parametrize("weight", ["a", [["a"]], [[1.0, 2.0], [1.0]], None, [[1j]]])
def test_weights_that_are_no_arrays_of_numbers_are_refused(device, weight):
    x, y = small_batch()
    step = {role: (x, y) for role in ("support", "query", "hessian")}
    weights = [weight, *device.weights[1:]]
    with pytest.raises(errors.DataError, match="Weight 0 is no array of numbers"):
        device.set_weights(weights)
    with pytest.raises(errors.DataError, match="Weight 0 is no array of numbers"):
        device.meta_update(weights, [step], RATE, RATE)
    named = {f"weight_{i}": w for i, w in enumerate(weights)}
    with pytest.raises(errors.DataError, match="set_weights: weight_0 is no array of"):
        device.call("set_weights", **named)
    assert relative_error(device.weights, SMALL.init(1)) == 0


def test_steps_to_weights_that_are_not_finite_are_undone(device):
    x, y = small_batch()
    with pytest.raises(errors.DataError, match="not finite; the weights are as before"):
        device.adapt(1e30 * x, y, 1e30, num_steps=3)
    assert relative_error(device.weights, SMALL.init(1)) == 0
    device.adapt(x, y, RATE)


def test_the_file_itself_is_safe_without_the_client(device):
    """An app may call the signatures with whatever it has."""
    x, y = small_batch()
    rate = np.array([RATE], np.float32)
    beyond = np.array([7, -1, -9, 3], np.int32)
    answer = device.call("adapt", x=x, y=beyond, learning_rate=rate)
    assert answer["loss"] == 0
    assert relative_error(device.weights, SMALL.init(1)) == 0
    for bad_x, bad_rate in ((x * np.nan, rate), (x, rate * np.nan), (x, -rate)):
        device.call("adapt", x=bad_x, y=y, learning_rate=bad_rate)
        assert relative_error(device.weights, SMALL.init(1)) == 0


def test_signatures_work_in_any_order(small_file):
    x, y = small_batch()
    unused = np.zeros([1], np.float32)
    first = {
        "infer": {"x": x[:1]},
        "get_weights": {"unused": unused},
        "reset": {"unused": unused},
        "describe": {"unused": unused},
        "adapt": {"x": x, "y": y, "learning_rate": np.array([RATE], np.float32)},
    }
    for name, inputs in first.items():
        device = OnDeviceModel(small_file)
        device.call(name, **inputs)
        device.reset()
        assert relative_error(device.weights, SMALL.init(1)) == 0


def test_two_adaptations_at_once_follow_each_other(small_file):
    x, y = small_batch()
    alone = OnDeviceModel(small_file)
    for _ in range(200):
        alone.adapt(x, y, RATE)
    together = OnDeviceModel(small_file)
    threads = [
        threading.Thread(target=lambda: [together.adapt(x, y, RATE) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert relative_error(together.weights, alone.weights) == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "no readable TensorFlow Lite file"),
        (lambda content: b"hello, this is no model at all", "no readable TensorFlow"),
        (lambda content: content[: len(content) // 2], "export it again"),
    ],
)
def test_a_file_that_is_no_model_is_refused(small_file, tmp_path, spoil, message):
    path = tmp_path / "spoiled.tflite"
    path.write_bytes(spoil(small_file.read_bytes()))
    with pytest.raises(errors.ModelError, match=message):
        OnDeviceModel(path)


def test_every_damaged_byte_of_a_file_is_found(small_file, tmp_path):
    content = small_file.read_bytes()
    path = tmp_path / "damaged.tflite"
    # All of the head, where the checksum is, and some of the rest.
    for place in [*range(64), *range(64, len(content), 97)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(errors.ModelError, match=r"damaged.tflite is damaged"):
            OnDeviceModel(path)


def test_a_file_cut_short_or_without_its_checksum_is_refused(small_file, tmp_path):
    content = small_file.read_bytes()
    path = tmp_path / "cut.tflite"
    for length in (len(content) - 1, len(content) // 2, 60, 30, 20):
        path.write_bytes(content[:length])
        with pytest.raises(
            errors.ModelError, match=r"cut.tflite is damaged or was cut"
        ):
            OnDeviceModel(path)
    unsealed = flatbuffer.pack(flatbuffer.read(content))
    assert seal.check(seal.sealed(unsealed), path)
    path.write_bytes(unsealed)
    with pytest.raises(errors.ModelError, match=r"cut.tflite .*checksum is missing"):
        OnDeviceModel(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(errors.ModelError, match="No model can be read"):
        OnDeviceModel(tmp_path / "nowhere.tflite")
    dense = tf.keras.Sequential([tf.keras.Input([2]), layers.Dense(1)])
    path = tmp_path / "foreign.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(dense).convert())
    with pytest.raises(errors.ModelError, match="not exported by tff_perfedavg"):
        OnDeviceModel(path)


def test_the_client_loads_no_tensorflow(small_file):
    program = (
        "import sys, numpy as np\n"
        "from tff_perfedavg import OnDeviceModel\n"
        "OnDeviceModel(sys.argv[1]).infer(np.zeros([1, 4]))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, small_file], check=True)


# ------------------------------------------------------------------ beside TFF


def store_of(name, tmp_path):
    from tff_perfedavg.data.config import DataConfig
    from tff_perfedavg.experiments.assemble.prepare import prepare_once

    return prepare_once(DataConfig.of(name, seed=0), tmp_path / name)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("digits", mlp),
        pytest.param("mnist", mlp, marks=[needs_data, pytest.mark.slow]),
        pytest.param("uci_har", conv1d, marks=needs_data),
    ],
)
def test_fifty_phones_equal_the_personalization_evaluation(tff, tmp_path, name, build):
    from tff_perfedavg.experiments.deploy import on_device
    from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
    from tff_perfedavg.optimization.config import AdaptationConfig

    population = store_of(name, tmp_path)
    model = build(population.input_shape, population.description.num_classes)
    weights = model.init(3)
    groups = on_device.choose_users(population, 50)
    users = np.concatenate(list(groups.values()))
    largest = max(len(population.adaptation(user).y) for user in users)
    path = tmp_path / "model.tflite"
    config = ExportConfig(batch_size=largest, infer_batch_size=64, max_local_steps=0)
    export_tflite(model, weights, path, config)
    adaptation = AdaptationConfig(0.05, 2)
    found = on_device.personalize(path, population, groups, adaptation)
    expected = evaluate_users(model, weights, population, adaptation)
    expected = expected[expected["user"].isin(users)]
    key = ["users", "user", "step"]
    found, expected = (
        f.sort_values(key).reset_index(drop=True) for f in (found, expected)
    )
    assert found[key].equals(expected[key].astype(found[key].dtypes))
    assert np.allclose(found["accuracy"], expected["accuracy"], atol=1e-6)
    assert np.allclose(found["loss"], expected["loss"], atol=1e-4)
    for column in ("num_adaptation_examples", "num_evaluation_examples"):
        assert (found[column] == expected[column]).all()


@pytest.mark.parametrize(
    "variant",
    # Each variant's own arithmetic is in test_meta_update_equals_the_float64_reference.
    slow_but({"exact"}, VARIANTS),
)
def test_a_round_over_devices_equals_tffs(tff, tmp_path, variant):
    import tff_perfedavg as pfa
    from tff_perfedavg.optimization import batches

    population = store_of("digits", tmp_path)
    model = mlp(population.input_shape, 10)
    local = PerFedAvgConfig(0.05, 0.05, 3, 6, 6, 6, variant, hessian_batch="own")
    cohort, seed = [0, 3, 5, 11], 4
    client_data = pfa.federated.StoreClientData(population, model)
    process = pfa.build_per_fed_avg(model, local, client_data=client_data, seed=seed)
    state = process.initialize()
    after = process.next(state, client_data.clients(cohort)).state
    before = [np.asarray(w) for w in process.get_model_weights(state).trainable]

    path = tmp_path / "model.tflite"
    export_tflite(
        model,
        model.init(9),
        path,
        ExportConfig(6, max_local_steps=3, trained=three_batches(variant)),
    )
    updates = []
    for user in cohort:
        rows = population.adaptation(user)
        x = rows.x.astype(np.float32) * np.float32(population.description.scale)
        own = rows_of(x, np.asarray(rows.y))
        pair = tf.constant(batches.seed_pair(seed))
        key = batches.user_key(pair, tf.constant(0), tf.constant(user))
        draw = batches.batch_source(own, key, 3, local.batch_sizes)
        steps = []
        for number in range(3):
            names = ("support", "query", "hessian")
            drawn = zip(names, draw(tf.constant(number)), strict=False)
            steps.append(
                {
                    name: tuple(t.numpy()[batch.mask.numpy() == 1] for t in batch[:2])
                    for name, batch in drawn
                }
            )
        update, _, _ = OnDeviceModel(path).meta_update(before, steps, 0.05, 0.05)
        updates.append(update)
    mean = reference.mean(updates, [1] * len(cohort))
    expected = [
        b - np.asarray(a)
        for b, a in zip(before, process.get_model_weights(after).trainable, strict=True)
    ]
    largest = max(np.abs(m - e).max() for m, e in zip(mean, expected, strict=True))
    assert 0 < largest < 1e-5


def test_a_device_refuses_another_population(tmp_path, small_file):
    from tff_perfedavg.experiments.deploy import on_device
    from tff_perfedavg.optimization.config import AdaptationConfig

    population = store_of("digits", tmp_path)
    groups = on_device.choose_users(population, 3)
    with pytest.raises(errors.ModelError, match="has features"):
        on_device.personalize(small_file, population, groups, AdaptationConfig(0.1))
    model = logistic_regression(population.input_shape, 10)
    path = tmp_path / "digits.tflite"
    export_tflite(model, model.init(0), path, ExportConfig(5, max_local_steps=0))
    config = dataclasses.replace(AdaptationConfig(0.1), batch_size=6)
    with pytest.raises(errors.ConfigError, match="Export it with a larger batch_size"):
        on_device.personalize(path, population, groups, config)


# ---------------------------------------------------------- what training deploys


@pytest.mark.parametrize(
    "grain", ["per_tensor", pytest.param("per_weight", marks=pytest.mark.slow)]
)
def test_learned_rates_and_the_pull_are_in_the_file(tmp_path, grain):
    trained = LocalSettings(
        algorithm="meta_sgd",
        inner_learning_rate=0.3,
        options={"inner_steps": 2, "inner_pull": 0.5, "learned_rates": grain},
    )
    rng = np.random.default_rng(5)
    weights = SMALL.init(1)
    shapes = [()] * 4 if grain == "per_tensor" else [w.shape for w in weights]
    logs = [rng.normal(size=shape).astype(np.float32) / 3 for shape in shapes]
    held = [np.stack(logs)] if grain == "per_tensor" else logs
    config = ExportConfig(batch_size=4, max_local_steps=2, trained=trained)
    path = tmp_path / "m.tflite"
    export_tflite(SMALL, [*weights, *held], path, config)
    device = OnDeviceModel(path)
    assert device.card["variant"] == "meta_sgd"
    assert device.card["adaptation"] == {
        "num_steps": 2,
        "moves": "all",
        "head_tensors": None,
        "pull": 0.5,
        "learned_rates": grain,
    }
    x, y = small_batch()
    for _ in range(3):
        # A factor of the rates in the file.
        device.adapt(x, y, 1.0)
    expected = family_reference.user_steps(
        BY_HAND,
        [w.astype(np.float64) for w in weights],
        (x, y),
        0.3,
        3,
        range(4),
        pull=0.5,
        factors=[np.exp(r) for r in logs],
    )[-1]
    assert relative_error(device.weights, expected) < 1e-5
    # Both are learned, and sent.
    roles = {role: (x, y) for role in ("support", "query")}
    update, _, _ = device.meta_update([*weights, *held], [roles], 0.3, 0.1)
    assert [u.shape for u in update] == [w.shape for w in (*weights, *held)]


@pytest.mark.parametrize(
    ("algorithm", "moving"),
    [
        ("boil", (0, 1)),
        pytest.param("anil", (2, 3), marks=pytest.mark.slow),
        pytest.param("p_fed_me", (0, 1, 2, 3), marks=pytest.mark.slow),
        pytest.param("fed_babu", (0, 1, 2, 3), marks=pytest.mark.slow),
        pytest.param("fed_prox", (0, 1, 2, 3), marks=pytest.mark.slow),
        ("fed_recon", (2, 3)),
    ],
)
def test_what_moved_in_training_moves_on_a_device(tmp_path, algorithm, moving):
    trained = LocalSettings(algorithm=algorithm, inner_learning_rate=0.1)
    config = ExportConfig(batch_size=4, max_local_steps=2, trained=trained)
    path, weights = tmp_path / "m.tflite", SMALL.init(1)
    # Its gate holds `meta_update` to the algorithm.
    export_tflite(SMALL, weights, path, config)
    device = OnDeviceModel(path)
    assert device.card["variant"] == algorithm
    x, y = small_batch()
    device.adapt(x, y, 0.1)
    pull = trained.adaptation.pull
    after = family_reference.user_steps(
        BY_HAND, [w.astype(float) for w in weights], (x, y), 0.1, 1, moving, pull
    )[-1]
    assert relative_error(device.weights, [after[i] for i in moving]) < 1e-5


def half_meta_sgd(path, factors):
    """Exports learned rates in half precision, one factor of 0.3 for each tensor."""
    trained = LocalSettings(
        algorithm="meta_sgd", inner_learning_rate=0.3, options={"rates_bound": 1e6}
    )
    config = ExportConfig(4, max_local_steps=0, storage="float16", trained=trained)
    held = np.log(np.asarray(factors, np.float32))
    export_tflite(SMALL, [*SMALL.init(1), held], path, config)


def test_learned_rates_in_half_precision_keep_its_precision(tmp_path):
    path, factors = tmp_path / "m.tflite", np.array([3e-4, 0.011, 1.0, 7.7])
    half_meta_sgd(path, factors)
    device, (x, y) = OnDeviceModel(path), small_batch()
    before = [w.astype(float) for w in device.weights]
    device.adapt(x, y, 10.0)
    gradient = BY_HAND.gradient(before, x, y)
    for was, now, slope, factor in zip(
        before, device.weights, gradient, factors, strict=True
    ):
        # float16 has 11 bits, and rounds the rate alone.
        expected = -10 * 0.3 * factor * slope
        error = np.abs(now - was - expected)
        assert error.max() <= 2**-11 * np.abs(expected).max() + 1e-6


def test_learned_rates_too_small_for_half_precision_are_refused(tmp_path):
    message = r"storage is 'float16', but .* rates from 3e-05 to 0\.3.*; export with"
    with pytest.raises(errors.ConfigError, match=message):
        half_meta_sgd(tmp_path / "m.tflite", [1e-4, 1, 1, 1])
    assert not (tmp_path / "m.tflite").exists()


def test_a_variant_has_the_settings_of_training():
    options = {"inner_steps": 5, "inner_pull": 0.5}
    trained = LocalSettings(variant="first_order", options=options)
    algorithm = ExportConfig(variant="exact", trained=trained).algorithm
    assert (algorithm.variant, algorithm.inner_steps) == ("exact", 5)
    assert algorithm.inner_pull == 0.5


def test_rates_that_were_not_learned_cannot_be_exported(tmp_path):
    config = ExportConfig(variant="meta_sgd")
    with pytest.raises(errors.ConfigError, match="variant is meta_sgd, whose learned"):
        export_tflite(SMALL, SMALL.init(0), tmp_path / "m.tflite", config)


def test_an_export_tells_what_differs_from_training():
    boil = LocalSettings(algorithm="boil", num_local_steps=4, batch_size=20)
    as_trained = ExportConfig(trained=boil)
    assert as_trained.differences() == []
    config = ExportConfig(
        3, variant="exact", max_local_steps=2, num_trainable=2, trained=boil
    )
    moves, variant, rows, steps = config.differences()
    assert "adapts the last 2 weight tensors" in moves
    assert "training adapted all but the last 2" in moves
    assert "variant is exact" in variant
    assert "took those of boil" in variant
    assert "fewer rows than the 20" in rows
    assert "fewer than the 4 local steps" in steps

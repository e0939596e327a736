"""A program in C, on the runtime's shared library, adapts as the Python runner does."""

import pathlib
import re
import subprocess

import ai_edge_litert
import numpy as np
import pytest

import tff_perfedavg as pfa
from tests.needs import needs_compiler
from tests.phone_layers import phone_layers
from tff_perfedavg.ondevice import seal

RUNTIME = pathlib.Path(ai_edge_litert.__file__).parent
SOURCE = pathlib.Path(__file__).parent.parent / "scripts" / "c_demo" / "adapt.c"
RATE, NUM_STEPS = 0.5, 5

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def adapt(tmp_path_factory):
    """Compiles the program; returns what runs it."""
    program = tmp_path_factory.mktemp("program") / "adapt"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    runtime = [f"-L{RUNTIME}", "-lLiteRt", f"-Wl,-rpath,{RUNTIME}"]
    subprocess.run(["cc", *flags, SOURCE, "-o", program, *runtime], check=True)

    def run(*arguments):
        return subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    model = pfa.models.mlp((8, 8), 10)
    path = tmp_path_factory.mktemp("model") / "model.tflite"
    pfa.export_tflite(
        model, model.init(0), path, pfa.ondevice.ExportConfig(batch_size=8)
    )
    return path


@pytest.fixture
def write_rows(tmp_path):
    def write(x, y):
        path = tmp_path / "rows.bin"
        x = x.reshape(len(x), -1).astype("<f4")
        with path.open("wb") as file:
            file.write(np.array(x.shape, "<i4").tobytes())
            for features, label in zip(x, y.astype("<i4"), strict=True):
                file.write(features.tobytes() + label.tobytes())
        return path

    return write


@pytest.fixture(scope="module")
def phone_path(tmp_path_factory):
    model = phone_layers()
    path = tmp_path_factory.mktemp("model") / "phone.tflite"
    config = pfa.ondevice.ExportConfig(batch_size=8, max_local_steps=0)
    pfa.export_tflite(model, model.init(0), path, config)
    return path


def draw_rows(count, shape=(8, 8)):
    rng = np.random.default_rng(0)
    return rng.random((count, *shape), np.float32), rng.integers(10, size=count)


# As many rows as a batch holds, and fewer, so that the rest is padding.
@pytest.mark.parametrize("count", [8, 5])
def test_c_and_python_adapt_alike(adapt, model_path, write_rows, count):
    compare(adapt, model_path, write_rows, count, atol=1e-6, least=0.1)


@pytest.mark.slow
def test_layers_of_phones_adapt_alike(adapt, phone_path, write_rows):
    compare(adapt, phone_path, write_rows, 6, atol=1e-5, least=0.05)


def compare(adapt, model_path, write_rows, count, atol, least):
    x, y = draw_rows(count)
    device = pfa.ondevice.OnDeviceModel(model_path)
    expected = {"initial": device.infer(x[:1])[0]}
    expected["loss"] = [device.adapt(x, y, RATE, NUM_STEPS)]
    expected["adapted"] = device.infer(x[:1])[0]
    device.reset()
    expected["reset"] = device.infer(x[:1])[0]

    answer = adapt(model_path, write_rows(x, y), RATE, NUM_STEPS)

    assert answer.returncode == 0, answer.stderr
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert [title for title, *_ in lines] == ["initial", "loss", "adapted", "reset"]
    found = {title: np.array(values, float) for title, *values in lines}
    for title, values in expected.items():
        np.testing.assert_allclose(found[title], values, rtol=0, atol=atol)
    np.testing.assert_array_equal(found["reset"], found["initial"])
    assert np.abs(found["adapted"] - found["initial"]).max() > least


@pytest.mark.parametrize("content", [None, b"", b"no model, but some longer text"])
def test_a_bad_model_file_is_refused(adapt, write_rows, tmp_path, content):
    bad = tmp_path / "bad.tflite"
    if content is not None:
        bad.write_bytes(content)
    answer = adapt(bad, write_rows(*draw_rows(2)), RATE, NUM_STEPS)
    assert answer.returncode == 1
    assert f"{bad} is missing or no TensorFlow Lite file" in answer.stderr
    assert not answer.stdout


def test_a_damaged_model_file_is_refused_before_it_is_run(
    adapt, model_path, write_rows, tmp_path
):
    rows, path = write_rows(*draw_rows(2)), tmp_path / "damaged.tflite"
    content = model_path.read_bytes()
    for place in [*range(0, 64, 7), *range(64, len(content), len(content) // 20)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        answer = adapt(path, rows, RATE, NUM_STEPS)
        assert answer.returncode == 1
        assert f"{path} is damaged" in answer.stderr
        assert not answer.stdout
    for length in (len(content) // 2, 60, 30, 20):
        path.write_bytes(content[:length])
        assert f"{path} is damaged" in adapt(path, rows, RATE, NUM_STEPS).stderr


def test_checksums_are_right_for_any_length(adapt, write_rows, tmp_path):
    """Around the ends of SHA-256's blocks: whole files, and none of them a model."""
    rows, path = write_rows(*draw_rows(2)), tmp_path / "sealed.tflite"
    for length in (56, 64, 65, 119, 120, 127, 128):
        content = seal.sealed(bytes(range(8)) + bytes(length - 56))
        assert len(content) == length
        path.write_bytes(content)
        answer = adapt(path, rows, RATE, NUM_STEPS)
        assert "is missing or no TensorFlow Lite file" in answer.stderr


def test_a_file_of_version_0_1_0_adapts_as_in_python(adapt, write_rows):
    path = pathlib.Path(__file__).parent / "data" / "version_0_1_0.tflite"
    x, y = draw_rows(4, (4,))
    y %= 3
    device = pfa.ondevice.OnDeviceModel(path)
    device.adapt(x, y, RATE, NUM_STEPS)
    answer = adapt(path, write_rows(x, y), RATE, NUM_STEPS)
    (adapted,) = re.findall("adapted (.*)", answer.stdout)
    found = np.array(adapted.split(), float)
    np.testing.assert_allclose(found, device.infer(x[:1])[0], rtol=0, atol=1e-6)
    answer = adapt(path, write_rows(x, y), 1e30, 1)
    assert answer.returncode == 1
    assert "answer is not finite; take a smaller learning rate" in answer.stderr


def test_rows_that_do_not_fit_are_refused(adapt, model_path, write_rows, tmp_path):
    answer = adapt(model_path, write_rows(*draw_rows(9)), RATE, NUM_STEPS)
    assert answer.returncode == 1
    assert "'x' is [9, 64]; adapt_steps takes [up to 8, 64]" in answer.stderr
    answer = adapt(model_path, write_rows(*draw_rows(2, (9,))), RATE, NUM_STEPS)
    assert answer.returncode == 1
    assert "'x' is [1, 9]; infer takes [up to 1, 64]" in answer.stderr
    path = write_rows(*draw_rows(2))
    path.write_bytes(path.read_bytes()[:-1])
    answer = adapt(model_path, path, RATE, NUM_STEPS)
    assert answer.returncode == 1
    assert f"no whole rows can be read at {path}" in answer.stderr


def test_a_step_to_weights_that_are_not_finite_is_refused(
    adapt, model_path, write_rows
):
    for rate, num_steps in ((1e37, 100), (1e30, 1), (RATE, 10_001)):
        answer = adapt(model_path, write_rows(*draw_rows(8)), rate, num_steps)
        assert answer.returncode == 1
        assert "the weights are as before; take a smaller" in answer.stderr
        assert [line.split()[0] for line in answer.stdout.splitlines()] == ["initial"]


@pytest.mark.parametrize("arguments", [("0.5x", 5), (0, 5), ("nan", 5), (0.5, 0)])
def test_bad_numbers_are_refused(adapt, model_path, write_rows, arguments):
    answer = adapt(model_path, write_rows(*draw_rows(2)), *arguments)
    assert answer.returncode == 2
    assert "must be numbers above 0, for example" in answer.stderr

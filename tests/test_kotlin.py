"""The client in Kotlin compiles, and does without a runtime what Python's does."""

import json
import pathlib
import subprocess

import numpy as np
import pytest

from tests.needs import needs_kotlin
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.ondevice.config import ExportConfig
from tff_perfedavg.ondevice.examples import Examples
from tff_perfedavg.ondevice.export import export_tflite
from tff_perfedavg.ondevice.runner import OnDeviceModel

ROOT = pathlib.Path(__file__).parent.parent
# What it calls of others, as far as their public interfaces are used.
STUBS = ROOT / "tests" / "data" / "kotlin"

pytestmark = needs_kotlin


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The client and a check of it, compiled against the stubs."""
    jar = tmp_path_factory.mktemp("kotlin") / "client.jar"
    sources = [*(ROOT / "scripts" / "kotlin").glob("*.kt"), *STUBS.glob("*.kt")]
    done = subprocess.run(
        ["kotlinc", "-include-runtime", "-d", jar, *sources],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Of the stubs it warns that they do nothing.
    assert "scripts/kotlin" not in done.stderr
    return jar


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    model = mlp((2,), 4, hidden=(3,))
    path = tmp_path_factory.mktemp("exported") / "model.tflite"
    config = ExportConfig(batch_size=4, max_local_steps=0)
    export_tflite(model, model.init(0), path, config, card={"who": "né à Zürich"})
    return path


def run(program, *arguments):
    return subprocess.run(
        ["java", "-cp", program, "tffperfedavg.CheckKt", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={"LC_ALL": "C.UTF-8", "JAVA_TOOL_OPTIONS": "-Dfile.encoding=UTF-8"},
    )


def test_it_reads_the_card_and_keeps_examples_as_python_does(
    program, model_path, tmp_path
):
    done = run(program, model_path, tmp_path)
    assert done.returncode == 0, done.stderr
    card, learn, check = done.stdout.splitlines()
    assert json.loads(card) == OnDeviceModel(model_path).card
    kept = Examples(12, np.zeros([0, 2], np.float32), np.zeros(0, np.int32))
    for number in range(50):
        kept.add(
            np.array([[number, 1]], np.float32), np.array([number % 7 % 4], np.int32)
        )
    for line, rows in ((learn, kept.to_learn()), (check, kept.to_check())):
        expected = [f"{int(x[0])}:{y}" for x, y in zip(rows.x, rows.y, strict=True)]
        assert line.split() == expected


def test_a_damaged_file_is_refused(program, model_path, tmp_path):
    content = model_path.read_bytes()
    path = tmp_path / "model.tflite"
    for spoilt in (content[:-1], content[:900] + b"?" + content[901:], b"no model"):
        path.write_bytes(spoilt)
        done = run(program, path, tmp_path)
        assert done.returncode == 1
        assert (
            "is damaged or was cut short" in done.stderr
            or "is no Tensor" in done.stderr
        )

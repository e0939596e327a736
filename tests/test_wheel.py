"""The package as a wheel: on a device without TensorFlow, and where models train."""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import venv
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ROOT / "tests/data/signs.tflite"
# Adapts a model to the rows of a file, and tells its probabilities and what was loaded.
ADAPT = """
import json, sys
import numpy as np
import tff_perfedavg as pfa
model, rows = sys.argv[1:]
rows = np.load(rows)
device = pfa.ondevice.OnDeviceModel(model)
device.adapt(rows["x"], rows["y"], 0.1, num_steps=3)
found = device.infer(rows["x"]).tolist()
print(json.dumps([found, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
# Pip on a machine without a network, or a registry, is nothing to test.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # The one that `make dist` has just built, or one of this code.
    given = os.environ.get("TFF_PERFEDAVG_WHEEL")
    if given:
        return ROOT / given
    directory = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, directory, ROOT], check=True
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def device(wheel, tmp_path_factory):
    """The commands of an environment with the device's client alone."""
    directory = tmp_path_factory.mktemp("device")
    venv.create(directory, with_pip=True)
    python = directory / "bin/python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{wheel}[device]"], check=True
    )
    return directory / "bin"


def run(*command):
    # Elsewhere, so that the checkout is not what is imported.
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    return done


def test_a_model_adapts_as_it_does_beside_tensorflow(device, tmp_path):
    from tff_perfedavg.ondevice import OnDeviceModel

    rng = np.random.default_rng(0)
    x = rng.random((20, 28, 28), np.float32)
    y = np.arange(20, dtype=np.int32) % 5
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    done = run(device / "python", "-c", ADAPT, MODEL, tmp_path / "rows.npz")
    assert done.returncode == 0, done.stderr
    found, loaded = json.loads(done.stdout)
    here = OnDeviceModel(MODEL)
    before = here.infer(x)
    here.adapt(x, y, 0.1, num_steps=3)
    np.testing.assert_allclose(found, here.infer(x), rtol=0, atol=1e-6)
    assert np.abs(np.array(found) - before).max() > 0.1
    assert "ai_edge_litert" in loaded
    assert not {"tensorflow", "tensorflow_federated", "pandas", "scipy"} & {*loaded}


def test_the_command_is_there_and_says_what_is_missing(device, tmp_path):
    told = run(device / "tff-perfedavg", "--help")
    assert told.returncode == 0, told.stderr
    assert "export" in told.stdout
    flags = ("--experiment_name=a", f"--root_output_dir={tmp_path}")
    done = run(device / "tff-perfedavg", "train", *flags)
    assert done.returncode == 1
    assert "is not installed" in done.stderr
    _, _, lock = done.stderr.rstrip().rpartition("pip install --no-deps -r ")
    assert pathlib.Path(lock).read_text() == (ROOT / "requirements.txt").read_text()


@pytest.fixture(scope="module")
def whole(wheel, tmp_path_factory):
    """The Python of an environment with the wheel and the lock's packages.

    These are the ones installed here, which test_lock compares with the lock.
    """
    directory = tmp_path_factory.mktemp("whole")
    venv.create(directory)
    python = directory / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = pathlib.Path(run(python, "-c", where).stdout.strip())
    with zipfile.ZipFile(wheel) as file:
        file.extractall(packages)
    # Behind the wheel's own, and without the checkout's link among them.
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_trains_evaluates_and_exports(whole, tmp_path):
    def done(*arguments):
        found = run(whole, "-m", "tff_perfedavg", *arguments)
        assert found.returncode == 0, found.stderr
        return found.stdout

    root = f"--root_output_dir={tmp_path}"
    where = "import tff_perfedavg as p; print(p.__file__)"
    assert str(whole.parent.parent) in run(whole, "-c", where).stdout
    done("train", "--experiment_name=a", "--total_rounds=2", root)
    assert "accuracy" in done("evaluate", "--experiment_name=a", root)
    model, output = tmp_path / "checkpoints/a/model.npz", tmp_path / "a.tflite"
    done("export", f"--checkpoint={model}", f"--output={output}")
    assert output.stat().st_size > 1000


def test_the_lock_of_the_package_is_that_of_the_checkout():
    here = ROOT / "tff_perfedavg/requirements.txt"
    assert here.read_text() == (ROOT / "requirements.txt").read_text()


def test_files_that_are_no_code_are_in_the_package(device):
    where = "import pathlib, tff_perfedavg as p; print(pathlib.Path(p.__file__).parent)"
    done = run(device / "python", "-c", where)
    home = pathlib.Path(done.stdout.strip())
    assert home.is_relative_to(device.parent)
    here = ROOT / "tff_perfedavg"
    for pattern in ("*.toml", "*.jinja", "*.pyi", "py.typed", "*.txt"):
        found = {path.relative_to(home) for path in home.rglob(pattern)}
        assert found == {path.relative_to(here) for path in here.rglob(pattern)}
        assert found

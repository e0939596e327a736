import collections
import gc
import os
import subprocess

# Before TensorFlow is loaded: its start-up notices are no test output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import hypothesis
import pytest

from tests import builds, needs
from tests.commands import Commands, TrainedRun
from tff_perfedavg.experiments.files.run_paths import RunPaths

# A machine that is busy with other work is no defect of what is tested.
hypothesis.settings.register_profile(
    "at leisure",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("at leisure")

# Graphs are traced all the time: a twentieth of it would go into looking through all of
# TensorFlow's objects again and again.
gc.set_threshold(10_000, 10, 10)

# Test files that take longest, in this order.
LONGEST = (
    "test_scripts",
    "test_ondevice",
    "test_resume",
    "test_web_signs",
    "test_web_demo",
    "test_study",
    "test_fleet_training",
    "test_remote_runtime",
    "test_store_clients",
    "test_advice",
    "test_aggregation",
    "test_divergence",
    "test_local_runtime",
    "test_programs",
    "test_learning_process",
)


@pytest.fixture(scope="session")
def runtime():
    """TFF's runtime, and its worker process, that all tests share."""
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    return use_local_runtime()


@pytest.fixture(scope="session")
def worker(runtime):
    """TFF's worker process on this machine that all tests share."""
    return runtime.worker


@pytest.fixture(scope="session")
def tff(worker):
    """TFF on that process."""
    import tensorflow_federated as tff

    return tff


@pytest.fixture(scope="session")
def commands(runtime):
    """Commands in this process, on the worker that all tests share."""
    return Commands(runtime)


@pytest.fixture(scope="session")
def trained(commands, tmp_path_factory):
    """A short run of a small model on digits, evaluated, reported and exported.

    Tests read it; what changes a run works on a run of its own.
    """
    root = tmp_path_factory.mktemp("trained")
    run = RunPaths(root, "trained")
    exported = root / "trained.tflite"
    for script, *arguments in (
        ("train", "--experiment_name=trained", "--total_rounds=3"),
        ("evaluate", "--experiment_name=trained", "--adaptation_steps=2"),
        ("report", "--run=trained"),
    ):
        assert commands.run(script, *arguments, f"--root_output_dir={root}") == 0
    arguments = (f"--checkpoint={run.model}", f"--output={exported}")
    assert commands.run("export_tflite", *arguments, "--max_local_steps=2") == 0
    return TrainedRun(run, exported)


@pytest.fixture
def run(commands, capfd):
    """Runs a command of scripts/ in this process, and has what it printed."""

    def run(script, *arguments):
        capfd.readouterr()
        code = commands.run(script, *arguments)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Where data sets are prepared once, and what was built on them."""
    return tmp_path_factory.mktemp("prepared"), {}


@pytest.fixture(scope="module")
def shared_builds(tff, prepared):
    """Runs of the module's tests share prepared data sets and computations on them."""
    with builds.shared(*prepared):
        yield


def pytest_collection_modifyitems(items):
    # So that no process is left with a long file when the others are done.
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and needs.is_needed(reason_of(report)):
        report.outcome = "failed"
        report.longrepr = f"Skipped where it must run: {reason_of(report)}"
    return report


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section(f"{len(skipped)} tests were skipped")
        for reason, count in collections.Counter(map(reason_of, skipped)).most_common():
            terminalreporter.write_line(f"{count:5} {reason}")


def reason_of(report):
    """Why a test was skipped."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    return reason.removeprefix("Skipped: ")

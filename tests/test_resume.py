"""A run that is killed, stopped or refused goes on to the bits of one never disturbed.

The users' data is prepared once and shared by all runs of a module.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.helpers import told_tensorboard
from tff_perfedavg import errors
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.files import locked
from tff_perfedavg.fleet.cohort import UniformSampler

pytestmark = pytest.mark.usefixtures("shared_builds")

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = {"model": "logistic_regression", "num_local_steps": 2, "batch_size": 5}
WATCHED = {
    "rounds_per_checkpoint": 3,
    "rounds_per_evaluation": 7,
    "best_metric": "new/accuracy/1",
}
SHORT = Experiment(total_rounds=14, **FLAGS)
# Of a life that ends, at most this many rounds are done by the fastest of machines.
ROUNDS_PER_LIFE = 50
LONG = dataclasses.replace(SHORT, total_rounds=3 * ROUNDS_PER_LIFE)
# Phones that are late are still at work in the next round, and batteries run down.
FLEET = {
    "fleet": "mixed",
    "fleet_work": str(ROOT / "tests" / "data" / "fleet.work.json"),
    "over_selection": 1.5,
    "round_deadline": 20.0,
    "min_reports": 2,
    "device_conditions": "idle",
    "battery_limit": 0.02,
}
OPTIONS = TrainingOptions(**WATCHED)


class Killed(BaseException):
    """Ends a run where it stands, as a kill does; nothing may catch it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def paths(root, request):
    """A run of the test's own."""
    return RunPaths(root, re.sub(r"\W", "_", request.node.name))


def train(paths, experiment=SHORT, **options):
    from tff_perfedavg.experiments.training.training import train_and_save

    return train_and_save(experiment, paths, dataclasses.replace(OPTIONS, **options))


@pytest.fixture(scope="module")
def once(tff, root):
    """`SHORT`, never disturbed."""
    paths = RunPaths(root, "once")
    train(paths)
    return paths


@pytest.fixture(scope="module")
def long_once(tff, root):
    """`LONG`, never disturbed."""
    paths = RunPaths(root, "long_once")
    train(paths, LONG)
    return paths


@pytest.fixture(scope="module")
def stopped(tff, root):
    """`SHORT`, stopped by Ctrl-C in its fifth round."""
    paths = RunPaths(root, "stopped")
    with pytest.MonkeyPatch.context() as patch:
        after_calls(patch, "draw", 5, lambda: os.kill(os.getpid(), 2), UniformSampler)
        with (
            pytest.raises(errors.Interrupted, match=r"Stopped after round 5 of 14; a"),
            # A loop over runs that goes on past errors does not go on past Ctrl-C.
            contextlib.suppress(errors.PerFedAvgError, Exception),
        ):
            train(paths)
    return paths


def after_calls(patch, name, count, do, owner, before=False):
    """Has a function do something else, too, at one of its calls, and tells when."""
    real, calls = getattr(owner, name), iter(range(1, 10**6))

    def function(*arguments, **keywords):
        is_it = next(calls) == count
        if is_it and before:
            do()
        result = real(*arguments, **keywords)
        if is_it and not before:
            do()
        return result

    patch.setattr(owner, name, function)


def copy_of(source, paths):
    """Makes `paths` a run like another."""
    for kind in ("checkpoints", "results", "logdir"):
        shutil.copytree(getattr(source, kind), getattr(paths, kind))
    return paths


def arrays_of(path):
    with np.load(path) as arrays:
        return {
            name: (arrays[name].dtype.str, arrays[name].shape, arrays[name].tobytes())
            for name in arrays.files
        }


def results_of(paths):
    """All that must not depend on how often a run was disturbed."""
    fleet = (paths.fleet_tasks, paths.fleet_rounds)
    return {
        **{path.name: path.read_bytes() for path in fleet if path.is_file()},
        "model": arrays_of(paths.model),
        "best model": arrays_of(paths.best_model),
        "metrics": paths.metrics.read_bytes(),
        "evaluations": paths.evaluations.read_bytes(),
        "events": paths.events.read_bytes(),
        "settings": paths.hparams.read_bytes(),
        "TensorBoard": told_tensorboard(paths.logdir),
    }


def assert_same_results(actual, expected):
    actual, expected = results_of(actual), results_of(expected)
    for name in expected:
        assert actual[name] == expected[name], f"The {name} differ."


def rounds_written(paths):
    """How many rounds have a line on disk."""
    if not paths.metrics.is_file():
        return 0
    return max(0, paths.metrics.read_bytes().count(b"\n") - 1)


# ------------------------------------------------------------------ processes


def arguments_of(paths, experiment):
    flags = {**FLAGS, **WATCHED, "total_rounds": experiment.total_rounds}
    if experiment.fleet_of_run.is_on:
        flags |= FLEET
    return [
        f"--experiment_name={paths.name}",
        f"--root_output_dir={paths.root}",
        *(f"--{name}={value}" for name, value in flags.items()),
    ]


def command(paths, experiment):
    return [
        sys.executable,
        ROOT / "scripts" / "train.py",
        *arguments_of(paths, experiment),
    ]


def start(paths, experiment):
    return subprocess.Popen(
        command(paths, experiment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def wait_until(condition, process, pause=0.02):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(pause)


def is_writing(paths):
    return any(name.startswith(".state_") for name in os.listdir(paths.checkpoints))


@pytest.mark.parametrize(
    ("num_kills", "fleet"),
    [(2, {}), (1, FLEET), pytest.param(20, FLEET, marks=pytest.mark.slow)],
)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    tff, run, root, paths, long_once, num_kills, fleet
):
    # Of a run without a fleet there is one that was never disturbed.
    total_rounds = num_kills * ROUNDS_PER_LIFE if fleet else LONG.total_rounds
    experiment = dataclasses.replace(LONG, total_rounds=total_rounds, **fleet)
    if experiment == LONG:
        undisturbed = long_once
    else:
        undisturbed = RunPaths(root, f"once_{num_kills}")
        train(undisturbed, experiment)
    chance = random.Random(num_kills)
    for kill in range(num_kills):
        process = start(paths, experiment)
        with process:
            goal = rounds_written(paths) + chance.randint(1, 10)
            wait_until(lambda goal=goal: rounds_written(paths) >= goal, process)
            # Every second kill falls into the writing of a checkpoint.
            if kill % 2:
                wait_until(lambda: is_writing(paths), process, pause=0)
            else:
                time.sleep(0.3 * chance.random())
            assert process.poll() is None, "over before it was killed"
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not paths.model.exists()
    last = run("train.py", *arguments_of(paths, experiment))
    assert last.returncode == 0, last.stderr
    assert re.search(f"{paths.name}: [1-9][0-9]* rounds are done", last.stderr)
    assert_same_results(paths, undisturbed)
    assert not [*paths.checkpoints.glob(".*"), *paths.results.glob(".*")]


def test_ctrl_c_saves_all_and_the_same_command_goes_on(tff, paths, long_once):
    with start(paths, LONG) as process:
        wait_until(lambda: rounds_written(paths), process)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    stopped_after = int(re.search(r"Stopped after round (\d+) of 150; all", said)[1])
    assert rounds_written(paths) == stopped_after
    assert (paths.checkpoints / f"state_{stopped_after:010d}.ckpt").is_file()
    train(paths, LONG)
    assert_same_results(paths, long_once)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(run, paths, long_once):
    copy_of(long_once, paths)
    newest = paths.checkpoints / "state_0000000150.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = run("train.py", *arguments_of(paths, LONG))
    assert again.returncode == 0
    assert f"{newest} is damaged" in again.stderr
    assert f"{paths.name}: 147 rounds are done" in again.stderr
    assert_same_results(paths, long_once)


def test_a_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on(paths, long_once):
    # The kernel refuses to let a file grow further, as it does on a full disk.
    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))

    full = subprocess.run(
        command(paths, LONG),
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        cwd=ROOT,
    )
    assert full.returncode == 1
    assert re.search(
        f"error: .*{paths.name}.* could not be written .*File too large.*goes on from",
        full.stderr,
    )
    assert "Traceback" not in full.stderr
    assert not paths.model.exists()
    train(paths, LONG)
    assert_same_results(paths, long_once)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--inner_learning_rate=nan", "inner_learning_rate is nan; it must be a fin"),
        ("--outer_learning_rate=inf", "outer_learning_rate is inf; it must be a fin"),
        ("--rounds_per_checkpoint=0", "rounds_per_checkpoint is 0"),
        ("--checkpoints_kept=0", "checkpoints_kept is 0"),
        ("--rounds_per_evaluation=-1", "rounds_per_evaluation is -1"),
        ("--best_metric=accuracy", "best_metric is 'accuracy'; it is seen or new, acc"),
        ("--rounds_per_save=3", "Unknown command line flag 'rounds_per_save'"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_any_work(
    run, tmp_path, flag, message
):
    answer = run("train.py", *arguments_of(RunPaths(tmp_path, "run"), SHORT), flag)
    assert answer.returncode == 1
    assert message in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ moments


def test_a_run_that_dies_between_any_two_steps_ends_with_the_same_bits(
    monkeypatch, paths, once
):
    from tff_perfedavg.experiments.files import run_facts
    from tff_perfedavg.experiments.files.checkpoints import CheckpointManager
    from tff_perfedavg.experiments.files.metrics_log import MetricsLog

    def die():
        raise Killed

    for owner, name, count, before in (
        (trained_model, "save", 1, False),
        (CheckpointManager, "write", 1, True),
        (CheckpointManager, "write", 1, False),
        (MetricsLog, "add_evaluation", 1, False),
        (MetricsLog, "sync", 2, True),
        (CheckpointManager, "write", 2, True),
        (run_facts, "write", 1, True),
    ):
        with monkeypatch.context() as patch:
            after_calls(patch, name, count, die, owner, before)
            with pytest.raises(Killed):
                train(paths)
    train(paths)
    assert_same_results(paths, once)


def test_a_checkpoint_never_knows_of_lines_that_are_not_on_disk(
    monkeypatch, tff, paths
):
    from tff_perfedavg.experiments.files.checkpoints import CheckpointManager

    known = []

    def look(self, state, version, notes, *, is_secret):
        assert not is_secret
        files = (paths.metrics, paths.evaluations, paths.events)
        known.append([*notes["positions"].values()])
        assert known[-1] == [file.stat().st_size for file in files]

    monkeypatch.setattr(CheckpointManager, "write", look)
    train(paths)
    assert len(known) == 5
    assert known == sorted(known)


def test_a_run_stopped_between_checkpoints_goes_on_from_its_last_round(
    paths, stopped, once
):
    copy_of(stopped, paths)
    assert rounds_written(paths) == 5
    assert [p.name for p in sorted(paths.checkpoints.glob("*.ckpt"))] == [
        "state_0000000003.ckpt",
        "state_0000000005.ckpt",
    ]
    train(paths)
    assert_same_results(paths, once)


@pytest.mark.slow
def test_fresh_labels_are_drawn_again_as_they_were(tff, root, paths):
    own = {"partition": "iid", "num_users": 20, "num_new_users": 4, "own_labels": 4}
    experiment = SHORT.replace(**own)
    undisturbed = RunPaths(root, "own_labels_once")
    train(undisturbed, experiment)
    with pytest.MonkeyPatch.context() as patch:
        after_calls(patch, "draw", 5, lambda: os.kill(os.getpid(), 2), UniformSampler)
        with pytest.raises(errors.Interrupted):
            train(paths, experiment)
    train(paths, experiment)
    assert_same_results(paths, undisturbed)
    # Orders that never change would give another model.
    fixed = RunPaths(root, "own_labels_fixed")
    train(fixed, experiment.replace(fresh_labels=False))
    assert arrays_of(fixed.model) != arrays_of(undisturbed.model)


def test_the_best_model_of_before_is_kept_where_it_stays_the_best(
    tff, monkeypatch, paths
):
    # At such a rate, training only ever makes it worse.
    worse = dataclasses.replace(SHORT, outer_learning_rate=30.0)
    after_calls(
        monkeypatch, "draw", 5, lambda: os.kill(os.getpid(), 15), UniformSampler
    )
    with pytest.raises(errors.Interrupted):
        train(paths, worse, best_metric="new/loss/0")
    best = arrays_of(paths.best_model)
    train(paths, worse, best_metric="new/loss/0")
    evaluations = pd.read_csv(paths.evaluations).query("users == 'new' and step == 0")
    assert evaluations.set_index("round_num")["loss"].idxmin() == 0
    assert arrays_of(paths.best_model) == best


def test_the_best_by_another_metric_is_looked_for_anew(paths, stopped):
    # Losses are no accuracies: the best accuracy so far would beat every loss.
    copy_of(stopped, paths)
    before = arrays_of(paths.best_model)
    train(paths, best_metric="new/loss/1")
    evaluations = pd.read_csv(paths.evaluations).query("users == 'new' and step == 1")
    assert evaluations.set_index("round_num")["loss"].idxmin() == 14
    best = arrays_of(paths.best_model)
    assert best == arrays_of(paths.model)
    assert best != before


# ------------------------------------------------------------------ settings


def test_another_configuration_is_refused_with_both_values(once):
    before = results_of(once)
    other = dataclasses.replace(SHORT, inner_learning_rate=0.02, batch_size=7)
    with pytest.raises(
        errors.ConfigError,
        match=r"state_0000000014\.ckpt is of a run with inner_learning_rate 0\.01, "
        r"not 0\.02; batch_size 5, not 7\. Give the run's own settings, choose another "
        r".*--noresume",
    ):
        train(once, other)
    assert results_of(once) == before


def test_fewer_rounds_than_are_done_are_refused(once):
    with pytest.raises(errors.ConfigError, match="total_rounds 14, not 8"):
        train(once, dataclasses.replace(SHORT, total_rounds=8))


def test_more_rounds_go_on_as_if_they_had_been_asked_for_at_once(
    paths, once, long_once
):
    train(copy_of(once, paths), LONG)
    actual, expected = results_of(paths), results_of(long_once)
    # The best may be of when fewer were asked for; it tells so.
    for results in (actual, expected):
        del results["best model"]["header"]
    assert actual == expected


def test_noresume_begins_anew_and_leaves_nothing_of_before(paths, once, long_once):
    copy_of(long_once, paths)
    for left in (paths.per_user, paths.results / "figure.png", paths.logdir / "old"):
        left.touch()
    train(paths, resume=False)
    assert_same_results(paths, once)
    for directory in ("checkpoints", "results"):
        kept, expected = (getattr(run, directory).iterdir() for run in (paths, once))
        assert {p.name for p in kept} == {p.name for p in expected}
    assert len(list(paths.logdir.iterdir())) == 1


def test_a_finished_run_is_left_as_it_is(monkeypatch, tff, paths, once):
    from tff_perfedavg.experiments.training import training

    copy_of(once, paths)
    files = {
        p: (p.stat().st_mtime_ns, p.read_bytes())
        for directory in (paths.checkpoints, paths.results, paths.logdir)
        for p in directory.iterdir()
        if p.name != "lock"
    }
    # Quick, since nothing is built.
    monkeypatch.setattr(training, "build_population", None)
    result = train(paths)
    assert [w.tobytes() for w in result.weights] == [
        w.tobytes() for w in trained_model.load(once.model)[0]
    ]
    assert list(result.metrics.index) == [*range(14)]
    for path, (changed, content) in files.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (changed, content)
    assert {p for path in files for p in path.parent.iterdir()} == {
        *files,
        paths.checkpoints / "lock",
    }


@pytest.mark.parametrize("damage", ["missing", "damaged", "of fewer rounds"])
def test_the_model_of_a_finished_run_is_made_again(tff, paths, once, damage):
    copy_of(once, paths)
    if damage == "missing":
        paths.model.unlink()
    elif damage == "damaged":
        paths.model.write_bytes(b"no model")
    else:
        fewer = dataclasses.replace(SHORT, total_rounds=7)
        trained_model.save(paths.model, [np.zeros([64, 10])], fewer)
    train(paths)
    assert_same_results(paths, once)


# ------------------------------------------------------------------ refusals


def test_two_processes_do_not_train_one_run(paths):
    with (
        locked(paths.checkpoints / "lock"),
        pytest.raises(
            errors.PerFedAvgError, match=f"Another process trains {paths.name}"
        ),
    ):
        train(paths)


def test_a_disk_without_room_is_refused_before_any_round(tff, monkeypatch, paths):
    room = SimpleNamespace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(
        errors.CheckpointError,
        match=rf"{paths.root} has 3 MB free; the run needs 2\d MB for checkpoints",
    ):
        train(paths)
    assert not paths.metrics.exists()


@pytest.mark.parametrize("kind", ["metrics", "evaluations", "events"])
def test_metrics_that_are_gone_are_refused_by_name(tff, paths, stopped, kind):
    copy_of(stopped, paths)
    gone = getattr(paths, kind)
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(
        errors.CheckpointError,
        match=f"{gone} has 0 bytes where the checkpoint knows of {len(content)}; put",
    ):
        train(paths)


def test_metrics_of_a_finished_run_that_are_gone_are_refused_by_name(paths, once):
    copy_of(once, paths)
    paths.metrics.unlink()
    with pytest.raises(
        errors.CheckpointError, match=f"{paths.metrics} is missing; put"
    ):
        train(paths)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(paths, stopped):
    copy_of(stopped, paths)
    for path in paths.checkpoints.glob("*.ckpt"):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match=r"05\.ckpt is damaged"),
        pytest.warns(UserWarning, match=r"03\.ckpt is damaged"),
        pytest.raises(errors.CheckpointError, match=r"None of the 2.*--noresume"),
    ):
        train(paths)


@pytest.mark.parametrize(
    "best_metric",
    ["accuracy", "old/accuracy/1", "new/f1/1", "new/accuracy/2", "new/accuracy/1 "],
)
def test_a_best_metric_that_is_none_is_refused_with_an_example(best_metric):
    with pytest.raises(
        errors.ConfigError,
        match=f"best_metric is '{best_metric}'; .* from 0 to 1, for example new/accu",
    ):
        TrainingOptions(best_metric=best_metric, rounds_per_evaluation=1)


def test_a_best_metric_that_is_not_measured_is_refused():
    with pytest.raises(errors.ConfigError, match="but rounds_per_evaluation is 0; not"):
        TrainingOptions(best_metric="new/accuracy/1", rounds_per_evaluation=0)


def test_a_best_metric_of_new_users_is_refused_where_there_are_none(tff, paths):
    nobody_new = dataclasses.replace(SHORT, num_new_users=0)
    with pytest.raises(errors.ConfigError, match=r"no new users; take seen/"):
        train(paths, nobody_new)


def test_a_best_accuracy_is_refused_where_labels_are_no_classes(tff, paths):
    generated = dataclasses.replace(
        SHORT, dataset="sinusoid", model="mlp_regressor", num_users=8, num_new_users=2
    )
    with pytest.raises(errors.ConfigError, match=r"no classes; take new/loss"):
        train(paths, generated)


def test_noresume_removes_nothing_where_the_new_run_cannot_be(tff, paths, once):
    copy_of(once, paths)
    too_many = dataclasses.replace(SHORT, clients_per_round=100)
    with pytest.raises(errors.ConfigError, match="clients_per_round is 100"):
        train(paths, too_many, resume=False)
    assert_same_results(paths, once)


def test_a_model_file_that_has_changed_is_refused(tff, paths, tmp_path):
    file = tmp_path / "my_model.py"
    source = (
        "import tensorflow as tf\n"
        "def build(input_shape, num_outputs):\n"
        "    return tf.keras.Sequential([tf.keras.Input(input_shape),\n"
        "        tf.keras.layers.Flatten(), tf.keras.layers.Dense(num_outputs)])\n"
    )
    file.write_text(source)
    own = dataclasses.replace(SHORT, model=f"{file}:build", total_rounds=2)
    train(paths, own)
    longer = dataclasses.replace(own, total_rounds=3)
    file.write_text(source.replace("num_outputs)])", "num_outputs, 'tanh')])"))
    # The run that is finished, and one that would go on; with checkpoints and without.
    for checkpoints in (True, False):
        with pytest.raises(
            errors.ConfigError, match=r"my_model\.py is not what it was"
        ):
            train(paths, own)
        if checkpoints:
            with pytest.raises(errors.ConfigError, match=r"is not what it was when"):
                train(paths, longer)
            kept = {p: p.read_bytes() for p in paths.checkpoints.glob("*.ckpt")}
            for path in kept:
                path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)
    file.write_text(source)
    train(paths, longer)


def test_a_store_that_has_changed_is_refused(tff, paths, tmp_path):
    from tff_perfedavg.data.config import DataConfig
    from tff_perfedavg.experiments.assemble.prepare import prepare

    store = tmp_path / "store"
    prepare(DataConfig.of("digits"), store)
    stored = dataclasses.replace(SHORT, store=str(store), total_rounds=2)
    train(paths, stored)
    shutil.rmtree(store)
    prepare(DataConfig.of("digits", seed=1), store)
    for rounds in (2, 3):
        with pytest.raises(errors.ConfigError, match="store is not what it was"):
            train(paths, dataclasses.replace(stored, total_rounds=rounds))
    # Not there any more is not changed.
    shutil.rmtree(store)
    train(paths, stored)


def test_a_damaged_store_is_refused_before_any_round(tff, paths, tmp_path):
    from tff_perfedavg.data.config import DataConfig
    from tff_perfedavg.experiments.assemble.prepare import prepare

    store = prepare(DataConfig.of("digits"), tmp_path / "store")
    table = np.fromfile(store.path / "users.bin", np.int64).reshape(-1, 4)
    # A new user, made one that trains.
    table[np.flatnonzero(table[:, 3])[0], 3] = 0
    table.tofile(store.path / "users.bin")
    stored = dataclasses.replace(SHORT, store=str(store.path), total_rounds=2)
    with pytest.raises(errors.DataError, match=r"users\.bin is not what was written"):
        train(paths, stored)
    assert not paths.model.exists()


def test_a_store_that_changes_under_a_run_stops_it_with_a_sentence(
    tff, paths, tmp_path
):
    from tff_perfedavg.data.config import DataConfig
    from tff_perfedavg.experiments.assemble.prepare import prepare
    from tff_perfedavg.experiments.training.training import train_and_save

    store = prepare(DataConfig.of("digits"), tmp_path / "store")
    stored = dataclasses.replace(SHORT, store=str(store.path))
    labels = store.path / "labels.bin"

    def change(done):
        if done == 5:
            # As an editor does, another file of that name.
            content = labels.read_bytes()
            labels.unlink()
            labels.write_bytes(content[::-1])

    with pytest.raises(errors.DataError, match="has changed while it was in use"):
        train_and_save(stored, paths, OPTIONS, change)
    assert max(int(p.stem[6:]) for p in paths.checkpoints.glob("*.ckpt")) == 3

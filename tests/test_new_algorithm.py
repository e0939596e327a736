"""A new algorithm is one file and one line, as CONTRIBUTING.md tells: its example."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest

import tff_perfedavg as pfa
from tests import reference
from tests.helpers import relative_error, toy_user
from tff_perfedavg import errors
from tff_perfedavg.algorithms import registry
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths

ROOT = pathlib.Path(__file__).parent.parent
MODEL = pfa.models.logistic_regression((4,), 3)
BY_HAND = reference.SoftmaxClassifier()


def example():
    text = (ROOT / "docs/CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return block


def told_in_contributing():
    """The file of the guide's example, as a module."""
    block = example()
    module = types.ModuleType("anchored")
    # Dataclasses look their module up.
    sys.modules[module.__name__] = module
    exec(compile(block, "docs/CONTRIBUTING.md", "exec"), module.__dict__)
    return module


AnchoredConfig = told_in_contributing().AnchoredConfig
CONFIG = AnchoredConfig(0.2, num_local_steps=3, batch_size=6, pull=0.7)


def by_hand(weights, x, y):
    """What a user has after its steps, where every batch is all of its rows."""
    start = weights = [w.astype(np.float64) for w in weights]
    for _ in range(3):
        gradient = BY_HAND.gradient(weights, x, y)
        weights = [
            w - 0.2 * (g + 0.7 * (w - a))
            for w, g, a in zip(weights, gradient, start, strict=True)
        ]
    return weights


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(registry.ALGORITHMS, "anchored", AnchoredConfig)


def test_the_guides_file_passes_the_checks_of_style(tmp_path):
    path, settings = tmp_path / "anchored.py", ROOT / "pyproject.toml"
    path.write_text(example())
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, f"--config={settings}", path],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"num_local_steps": 0}, "num_local_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"pull": -5.0}, "pull is -5.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_measures_are_those_that_steps_measure(tff):
    algorithm = CONFIG.build()
    with pytest.raises(errors.ConfigError, match="without 'query_loss'"):
        dataclasses.replace(algorithm, measures=("loss",))
    more = dataclasses.replace(algorithm, measures=("query_loss", "speed"))
    with pytest.raises(errors.ConfigError, match=r"measures \['query_loss'\], but"):
        pfa.build_process(MODEL, more)


def test_a_learning_process_runs_it(tff):
    rng = np.random.default_rng(0)
    users = [toy_user(rng, 6) for _ in range(3)]
    process = pfa.build_process(MODEL, CONFIG, seed=4)
    clients = [pfa.client_dataset(i, *rows) for i, rows in enumerate(users)]
    output = process.next(process.initialize(), clients)
    before = MODEL.init(4)
    trained = [by_hand(before, x, y) for x, y in users]
    after = process.get_model_weights(output.state).trainable
    assert relative_error(after, reference.mean(trained, [1, 1, 1])) < 1e-6
    assert set(output.metrics["client_work"]) == {
        "query_loss",
        "update_norm",
        "outlier_decades",
        "num_users_taken",
        "num_users_excluded",
    }


def test_blocks_of_users_run_it_alike(tff, tmp_path):
    rng = np.random.default_rng(1)
    users = [
        pfa.data.User(
            pfa.data.Rows(*toy_user(rng, 6)), pfa.data.Rows(*toy_user(rng, 2))
        )
        for _ in range(4)
    ]
    store = pfa.UserStore.write(
        tmp_path / "store", users, pfa.data.Description("toy", num_classes=3)
    )
    found = []
    for client_data in (
        pfa.federated.StoreClientData(store, MODEL),
        pfa.federated.BlockClientData(store, MODEL, 2, "loop"),
        pfa.federated.BlockClientData(store, MODEL, 2, "vectorized"),
    ):
        process = pfa.build_process(MODEL, CONFIG, client_data=client_data)
        state = process.next(
            process.initialize(), client_data.clients(np.arange(4))
        ).state
        found.append(process.get_model_weights(state).trainable)
    trained = [by_hand(MODEL.init(0), u.adaptation.x, u.adaptation.y) for u in users]
    for weights in found:
        assert relative_error(weights, reference.mean(trained, [1] * 4)) < 1e-6


def test_its_adaptation_is_evaluated(tff):
    rng = np.random.default_rng(2)
    (x, y), (held_x, held_y) = toy_user(rng, 6), toy_user(rng, 5)
    evaluate = pfa.build_personalization_eval(MODEL, CONFIG.build().adaptation)
    user = {
        "adaptation": pfa.client_dataset(0, x, y),
        "evaluation": pfa.client_dataset(0, held_x, held_y),
    }
    weights = MODEL.init(0)
    at_server = tff.learning.models.ModelWeights(tuple(weights), ())
    (found,) = evaluate(at_server, [user])
    expected = [BY_HAND.loss(weights, held_x, held_y)]
    for _ in range(2):
        weights = reference.axpy(-0.2, BY_HAND.gradient(weights, x, y), weights)
        expected.append(BY_HAND.loss(weights, held_x, held_y))
    assert np.allclose(found["loss"], expected, rtol=1e-5)


def test_a_sweep_reports_it(registered, run, tmp_path):
    answer = run(
        "sweep",
        f"--root_output_dir={tmp_path}",
        "--model=logistic_regression",
        "--num_users=8",
        "--num_new_users=4",
        "--clients_per_round=3",
        "--num_local_steps=1",
        "--total_rounds=2",
        "--pull=0.1",
        "--grid=method=anchored,exact",
        "--grid=inner_learning_rate=0.1,0.3",
    )
    assert answer.returncode == 0, answer.stderr
    # Its training uses no inner learning rate: one run of it, two of the other.
    runs = {path.name: path for path in (tmp_path / "checkpoints").iterdir()}
    assert len(runs) == 3
    _, experiment = trained_model.load(runs["anchored"] / "model.npz")
    assert experiment.local.config.pull == 0.1
    table = pd.read_csv(tmp_path / "sweep.table.csv")
    is_method = table["baseline"] == "-"
    assert {*table["method"][is_method]} == {"anchored", "exact"}
    # The first method's model is the one that label shares correct.
    assert "Anchored + label shares" in {*table["baseline"]}
    assert table["accuracy"].between(0, 1).all()


def test_a_run_is_trained_evaluated_and_exported(registered, run, tmp_path):
    root = f"--root_output_dir={tmp_path}"
    name = "--experiment_name=toy"
    train = ("train", root, name, "--algorithm=anchored", "--total_rounds=2")
    assert run(*train, "--model=logistic_regression").returncode == 0
    # Its own setting is one of the run's: another value is another run.
    answer = run(*train, "--model=logistic_regression", "--pull=0.1")
    assert "pull" in answer.stderr
    answer = run("train", root, "--experiment_name=other", "--pull=0.1")
    assert "pull is 0.1, but per_fed_avg has no such setting" in answer.stderr
    answer = run("evaluate", root, name)
    assert answer.returncode == 0, answer.stderr
    assert "Anchored" in answer.stdout

    paths, exported = RunPaths(tmp_path, "toy"), tmp_path / "toy.tflite"
    # Held to TensorFlow in both runtimes before the file is there.
    answer = run(
        "export_tflite",
        f"--checkpoint={paths.model}",
        f"--output={exported}",
        "--variant=anchored",
        "--max_local_steps=3",
        "--batch_size=6",
    )
    assert answer.returncode == 0, answer.stderr
    weights, _ = trained_model.load(paths.model)
    rng = np.random.default_rng(3)
    x = rng.random([6, 8, 8], np.float32)
    y = rng.integers(10, size=6)
    device = pfa.ondevice.OnDeviceModel(exported)
    update, _, _ = device.meta_update(weights, [{"rows": (x, y)}] * 2, 0.2, 0.2)
    start = [w.astype(np.float64) for w in weights]
    end = start
    for _ in range(2):
        gradient = BY_HAND.gradient(end, x.reshape(6, 64), y)
        end = [
            w - 0.2 * (g + 0.5 * (w - a))
            for w, g, a in zip(end, gradient, start, strict=True)
        ]
    assert relative_error(update, reference.axpy(-1, end, start)) < 1e-5

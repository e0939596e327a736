"""Training from given weights: used, remembered by content, and refused."""

import shutil

import numpy as np
import pandas as pd
import pytest

from tff_perfedavg import errors
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.initial_weights import rates_from, starting_from
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import sha256
from tff_perfedavg.models.dense import logistic_regression
from tff_perfedavg.optimization.learned_rates import PER_WEIGHT, LearnedRates

pytestmark = pytest.mark.usefixtures("shared_builds")

# Of digits.
MODEL = logistic_regression((8, 8), 10)


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=w.shape).astype(np.float32) for w in MODEL.init(0)]


def plain(path, arrays, name="weight"):
    np.savez(path, **{f"{name}_{i}": array for i, array in enumerate(arrays)})
    return path


def assert_equal(found, expected):
    assert [w.dtype for w in found] == [np.float32] * len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


def test_a_model_starts_from_a_runs_weights_whatever_the_seed(tmp_path):
    path, given = tmp_path / "model.npz", weights()
    # What a run has learned behind its weights is not the model's.
    trained_model.save(path, [*given, np.ones([2], np.float32)], Experiment())
    starting = starting_from(MODEL, path)
    assert_equal(starting.init(0), given)
    starting.init(3)[0][:] = 0
    assert_equal(starting.init(3), given)
    assert not np.array_equal(MODEL.init(0)[0], given[0])


def test_a_model_starts_from_arrays_made_elsewhere(tmp_path):
    given = weights()
    path = plain(tmp_path / "theirs.npz", [w.astype(np.float64) for w in given])
    assert_equal(starting_from(MODEL, path).init(0), given)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (
            lambda w: [w[0][:9], w[1]],
            errors.ConfigError,
            r"shapes \[9, 10\], \[10\]; those of the model .* \[64, 10\], \[10\]\. ",
        ),
        (lambda w: w[:1], errors.ConfigError, r"shapes \[64, 10\]; those of the model"),
        (lambda w: [*w, w[1]], errors.ConfigError, r"shapes .*\[10\], \[10\]; those"),
        (lambda w: [w[0] / 0, w[1]], errors.ConfigError, "weights are not finite"),
        (
            lambda w: [w[0].astype("U3"), w[1]],
            errors.ConfigError,
            "weights are <U3, float32; write float32",
        ),
    ],
    ids=["shape", "fewer", "more", "infinite", "text"],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, error, message):
    path = plain(tmp_path / "theirs.npz", arrays(weights()))
    with pytest.raises(error, match=message):
        starting_from(MODEL, path)


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(errors.CheckpointError, match="No trained model at"):
        starting_from(MODEL, tmp_path / "nowhere.npz")
    path = plain(tmp_path / "theirs.npz", weights(), name="layer")
    with pytest.raises(errors.CheckpointError, match="has arrays layer_0, layer_1; "):
        starting_from(MODEL, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(errors.CheckpointError, match="is no readable model file"):
        starting_from(MODEL, path)


@pytest.fixture
def train(run, tmp_path):
    """Trains from a file, by a server rate at which no weight moves."""

    def train(initial, *flags, name="mine"):
        return run(
            "train.py",
            f"--experiment_name={name}",
            f"--initial={initial}",
            f"--root_output_dir={tmp_path}",
            "--algorithm=fed_avg",
            "--model=logistic_regression",
            "--num_local_steps=1",
            "--total_rounds=1",
            "--rounds_per_evaluation=0",
            "--server_learning_rate=1e-30",
            *flags,
        )

    return train


def test_a_run_starts_from_a_file_and_remembers_its_content(train, run, tmp_path):
    initial = plain(tmp_path / "theirs.npz", weights())
    paths = RunPaths(tmp_path, "mine")
    assert train(initial).returncode == 0
    found, experiment = trained_model.load(paths.model)
    assert_equal(found, weights())
    assert experiment.initial == str(initial)
    assert trained_model.load_sources(paths.model)[str(initial)] == sha256(initial)
    settings = pd.read_csv(paths.hparams, index_col="name")["value"]
    assert settings["initial"] == str(initial)

    # Another file is another run; another content is told.
    other = plain(tmp_path / "others.npz", weights(1))
    assert "initial" in train(other).stderr
    shutil.copy(other, initial)
    evaluate = (
        "evaluate.py",
        "--experiment_name=mine",
        f"--root_output_dir={tmp_path}",
    )
    for answer in (train(initial), train(initial, "--total_rounds=2"), run(*evaluate)):
        assert answer.returncode == 1
        assert "theirs.npz is not what it was when" in answer.stderr


def test_a_run_is_refused_before_anything_is_traced(train, tmp_path, monkeypatch):
    from tff_perfedavg.experiments.training import simulation

    monkeypatch.delattr(simulation, "build_process")
    initial = plain(tmp_path / "theirs.npz", weights()[:1])
    told = train(initial, name="shapes").stderr
    assert "whose weights have the shapes [64, 10]; those of the model" in told
    nowhere = tmp_path / "nowhere.npz"
    assert f"No trained model at {nowhere}" in train(nowhere).stderr


def test_a_runs_own_shapes_are_all_told(train, run, tmp_path):
    path = tmp_path / "deeper.npz"
    deeper = [*weights(), *(np.ones([3, 3], np.float32) for _ in range(8))]
    deeper[0] = deeper[0][:9]
    trained_model.save(path, deeper, Experiment())
    told = train(path).stderr
    assert "[9, 10], [10], [3, 3], " in told
    assert "..., [3, 3] (10 tensors); those of the model" in told
    assert "are [64, 10], [10]. Start from weights of the same model" in told


def with_rates(path, scale=2.0):
    """A Meta-SGD run's file, whose rates' logarithms are 0.25 and -0.125."""
    settings = {"algorithm": "meta_sgd", "rates_scale": scale}
    held = scale * np.array([0.25, -0.125], np.float32)
    trained_model.save(path, [*weights(), held], Experiment(**settings))
    return path


def test_learned_rates_suit_a_run_that_learns_such(tmp_path):
    path = with_rates(tmp_path / "theirs.npz")
    for scale in (1.0, 2.0, 4.0):
        (held,), told = rates_from(path, LearnedRates(scale=scale))
        assert held.dtype == np.float32
        assert np.array_equal(held, scale * np.array([0.25, -0.125]))
        assert told == f"The learned rates of {path} are taken, too."
    for learned, why in ((LearnedRates(PER_WEIGHT), "per_weight"), (None, "no rates")):
        held, told = rates_from(path, learned)
        assert held is None
        assert "theirs.npz, per_tensor, are left out of this run: it" in told
        assert told.endswith(f"{why}.")
    trained_model.save(path, weights(), Experiment())
    for other in (path, plain(tmp_path / "plain.npz", weights())):
        assert rates_from(other, LearnedRates()) == (None, "")


def test_a_run_starts_from_learned_rates(train, tmp_path):
    path = with_rates(tmp_path / "theirs.npz")
    answer = train(path, "--algorithm=meta_sgd", "--rates_scale=4")
    assert answer.returncode == 0, answer.stderr
    assert f"The learned rates of {path} are taken, too." in answer.stderr
    found, _ = trained_model.load(RunPaths(tmp_path, "mine").model)
    assert_equal(found, [*weights(), np.array([1.0, -0.5], np.float32)])


def test_a_sweep_is_refused_before_its_first_run(run, tmp_path):
    whole = plain(tmp_path / "whole.npz", weights())
    answer = run(
        "sweep.py",
        f"--grid=initial={whole},{tmp_path / 'nowhere.npz'}",
        "--model=logistic_regression",
        f"--root_output_dir={tmp_path}",
    )
    assert answer.returncode == 1
    assert "No trained model at" in answer.stderr
    assert not [*tmp_path.rglob("model.npz")]


def test_a_run_does_not_start_from_what_it_writes(train, tmp_path):
    own = RunPaths(tmp_path, "mine").model
    own.parent.mkdir(parents=True)
    plain(own, weights())
    answer = train(own, "--noresume")
    assert answer.returncode == 1
    assert "model.npz, which the run mine writes; choose another" in answer.stderr
    assert own.is_file()

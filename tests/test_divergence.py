"""Runs that leave the finite numbers, or nearly: what is kept, and what is said."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment

pytestmark = pytest.mark.usefixtures("shared_builds")

BASE = Experiment(
    model="logistic_regression",
    algorithm="fed_avg",
    num_local_steps=1,
    batch_size=5,
    total_rounds=6,
    clients_per_round=8,
)


def users(scales):
    rng = np.random.default_rng(0)
    for scale in scales:
        x = (scale * rng.normal(size=[10, 3])).astype(np.float32)
        y = rng.integers(0, 2, [10], np.int32)
        yield User(Rows(x[:8], y[:8]), Rows(x[8:], y[8:]))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "users"
    return UserStore.write(path, users([1.0] * 12), Description("toy", 2))


@pytest.fixture(scope="module")
def diverging(tff, store, tmp_path_factory):
    """A run whose rates grow until nothing is finite: its settings, files and error."""
    from tff_perfedavg.experiments.training.training import train_and_save

    paths = RunPaths(tmp_path_factory.mktemp("runs"), "wild")
    # Each step multiplies what is wrong with the weights, from round to round.
    experiment = dataclasses.replace(
        BASE,
        store=str(store.path),
        model="mlp",
        num_local_steps=2,
        outer_learning_rate=3e4,
        total_rounds=60,
    )
    with pytest.raises(errors.Diverged) as caught:
        train_and_save(experiment, paths)
    return experiment, paths, str(caught.value)


def test_a_diverged_run_leaves_the_model_of_its_last_good_round(diverging):
    experiment, paths, message = diverging
    told = json.loads(paths.diverged.read_text())
    done = told["round_num"]
    assert 0 < done < 60
    assert Experiment(**told["experiment"]) == experiment
    assert f"Round {done}: " in message
    assert f"is the model after {done} of 60 rounds, the last whose" in message
    weights, trained = trained_model.load(paths.model)
    assert all(np.isfinite(w).all() for w in weights)
    assert trained == dataclasses.replace(experiment, total_rounds=done)


def test_the_model_left_is_the_one_a_shorter_run_ends_with(tff, diverging, tmp_path):
    from tff_perfedavg.experiments.training.training import train_and_save

    _, paths, _ = diverging
    weights, trained = trained_model.load(paths.model)
    shorter = train_and_save(trained, RunPaths(tmp_path, "short"))
    for one, other in zip(weights, shorter.weights, strict=True):
        assert np.array_equal(one, other)


def test_the_same_command_diverges_again_where_it_did(tff, diverging):
    from tff_perfedavg.experiments.training.training import train_and_save

    experiment, paths, message = diverging
    with pytest.raises(errors.Diverged) as caught:
        train_and_save(experiment, paths)
    assert str(caught.value) == message


def test_a_run_begun_anew_with_other_rates_forgets_that_it_diverged(
    tff, diverging, tmp_path
):
    from tff_perfedavg.experiments.settings.training_options import TrainingOptions
    from tff_perfedavg.experiments.training.training import train_and_save

    experiment, paths, _ = diverging
    shutil.copytree(paths.root, tmp_path / "copy")
    again = RunPaths(tmp_path / "copy", paths.name)
    tame = dataclasses.replace(experiment, outer_learning_rate=0.01, total_rounds=2)
    train_and_save(tame, again, TrainingOptions(resume=False))
    assert not again.diverged.exists()
    assert trained_model.load(again.model)[1] == tame


def test_where_the_servers_rate_is_given_it_is_among_the_remedies(
    tff, store, diverging
):
    from tff_perfedavg.experiments.training.training import train

    experiment, _, message = diverging
    assert "Lower the outer or the inner learning rate." in message
    given = dataclasses.replace(experiment, server_learning_rate=0.9)
    with pytest.raises(
        errors.Diverged, match="Lower the server's, the outer or the inner learning"
    ):
        train(given, store)


def test_an_aggregate_that_is_not_finite_ends_the_run(tff, store, monkeypatch):
    """Every user's update is finite; their mean, made by TFF, is not."""
    import tensorflow as tf

    from tff_perfedavg.experiments.assemble import aggregation
    from tff_perfedavg.experiments.training.training import train
    from tff_perfedavg.optimization import update_transforms

    def enormous(norm):
        return lambda update: [u * 0 + tf.float32.max for u in update]

    # Not the norm's check: the sum over users overflows behind it.
    monkeypatch.setattr(aggregation, "clip_update", enormous)
    assert update_transforms.clip_update is not enormous
    experiment = dataclasses.replace(
        BASE, store=str(store.path), aggregator="clip", clipping_norm=1.0
    )
    with pytest.raises(errors.Diverged, match="what the aggregator clip makes of them"):
        train(experiment, store)


def test_an_update_out_of_all_proportion_is_told_once_with_the_remedy(
    tff, tmp_path, capsys
):
    from tff_perfedavg.experiments.training.training import train

    # Of one user in twelve, whose features are a million times the others'.
    path = tmp_path / "users"
    store = UserStore.write(path, users([1.0] * 11 + [1e6]), Description("toy", 2))
    experiment = dataclasses.replace(BASE, store=str(path), clients_per_round=12)
    train(experiment, store)
    told = capsys.readouterr().err
    assert told.count("times the usual") == 1
    assert "--aggregator=clip --clipping_norm=NORM" in told


@pytest.mark.parametrize("aggregator", ["mean", "clip"])
def test_usual_updates_and_clipped_ones_are_not_told_of(
    tff, store, tmp_path, capsys, aggregator
):
    from tff_perfedavg.experiments.training.training import train

    wild = UserStore.write(
        tmp_path / "wild", users([1.0] * 11 + [1e6]), Description("toy", 2)
    )
    clip = aggregator == "clip"
    chosen = wild if clip else store
    experiment = dataclasses.replace(
        BASE,
        store=str(chosen.path),
        clients_per_round=12,
        aggregator=aggregator,
        clipping_norm=1.0 if clip else None,
    )
    train(experiment, chosen)
    assert "times the usual" not in capsys.readouterr().err

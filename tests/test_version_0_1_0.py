"""What version 0.1.0 wrote still opens and resumes.

tests/data/version_0_1_0 was made by that version: a store of eight users with rows
enough for disjoint batches; runs of four methods stopped in their third round of six,
and the same runs undisturbed; a private run; personalized weights; an exported model
and one owner's weights.
"""

import dataclasses
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest

from tests.helpers import relative_error
from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import paper_methods
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.training_options import TrainingOptions
from tff_perfedavg.ondevice.runner import OnDeviceModel

MADE = pathlib.Path(__file__).parent / "data" / "version_0_1_0"
OPTIONS = TrainingOptions(
    rounds_per_checkpoint=2, rounds_per_evaluation=3, best_metric="new/accuracy/1"
)
BASE = Experiment(
    store="store",
    model="logistic_regression",
    num_local_steps=2,
    batch_size=4,
    total_rounds=6,
    clients_per_round=3,
    client_form="users",
    # What that version did.
    hessian_batch="own",
)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A copy to work in: runs name their store from where they were started."""
    shutil.copytree(MADE, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"


def test_a_store_opens():
    store = UserStore.open(MADE / "store")
    store.verify()
    assert (store.num_users, store.num_rows) == (8, 128)
    assert store.description.provenance == "by version 0.1.0"


@pytest.mark.parametrize("method", paper_methods())
def test_a_stopped_run_resumes_and_ends_as_the_one_never_stopped(tff, made, method):
    from tff_perfedavg.experiments.training.training import train_and_save

    experiment = dataclasses.replace(BASE, **paper_methods()[method])
    stopped, finished = (RunPaths(made / n, method) for n in ("stopped", "finished"))
    found = train_and_save(experiment, stopped, OPTIONS)
    expected, trained = trained_model.load(finished.model)
    assert not trained.differences(experiment)
    # To the bit on one kind of processor; others may round otherwise.
    assert relative_error(found.weights, expected) < 1e-6
    rounds, before = (pd.read_csv(paths.metrics) for paths in (stopped, finished))
    pd.testing.assert_frame_equal(rounds, before, rtol=1e-5)
    of_best, _ = trained_model.load(stopped.best_model)
    assert relative_error(of_best, trained_model.load(finished.best_model)[0]) < 1e-6


def test_a_finished_run_is_left_as_it_is(tff, made):
    from tff_perfedavg.experiments.training.training import train_and_save

    paths = RunPaths(made / "finished", "exact")
    before = paths.model.read_bytes()
    result = train_and_save(BASE, paths, OPTIONS)
    assert paths.model.read_bytes() == before
    assert len(result.metrics) == 6


def test_a_run_is_not_gone_on_with_by_another_hessian_batch(tff, made):
    from tff_perfedavg.experiments.training.training import train_and_save

    now = dataclasses.replace(BASE, hessian_batch="support")
    message = "hessian_batch 'own', not 'support'. Give the run's own settings"
    for state in ("stopped", "finished"):
        with pytest.raises(errors.ConfigError, match=message):
            train_and_save(now, RunPaths(made / state, "exact"), OPTIONS)


def test_a_private_run_goes_on_and_is_accounted_as_it_was_drawn(tff, made, capsys):
    from tff_perfedavg.experiments.training.training import train_and_save

    private = dataclasses.replace(
        BASE, aggregator="dp_fixed", clipping_norm=0.1, noise_multiplier=0.5
    )
    train_and_save(private, RunPaths(made / "stopped", "private"), OPTIONS)
    told = capsys.readouterr().err
    assert "of a version that drew private cohorts from the seed" in told
    assert "sampling amplifies nothing" in told


def test_personalized_weights_open():
    from tff_perfedavg.experiments.files.personalized_store import PersonalizedStore

    store = PersonalizedStore.open(MADE / "personalized")
    store.verify()
    assert list(store.users) == [6, 7]
    assert [w.shape for w in store.weights(6)] == [(6, 3), (3,)]


def test_an_exported_model_takes_its_owners_weights():
    store = UserStore.open(MADE / "store")
    rows = store.scaled(store.adaptation(6))
    device = OnDeviceModel(MADE / "model.tflite")
    before = device.infer(rows.x[:4])
    device.load(MADE / "owner.bin")
    expected = np.load(MADE / "owner_probabilities.npy")
    assert np.allclose(device.infer(rows.x[:4]), expected, atol=1e-6)
    assert not np.allclose(before, expected, atol=1e-4)
    assert device.adapt(rows.x[:4], rows.y[:4], 0.1) > 0

"""Training users without adaptation rows: left out, and told as what they are."""

import numpy as np
import pytest

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.training.training import train


def population_of(path, num_rows):
    """A store of users with so many adaptation rows each, and one evaluation row."""

    def users():
        rng = np.random.default_rng(0)
        for rows in num_rows:
            x = rng.normal(size=[rows + 1, 4]).astype(np.float32)
            y = np.arange(rows + 1, dtype=np.int32) % 3
            yield User(Rows(x[:rows], y[:rows]), Rows(x[rows:], y[rows:]))

    return UserStore.write(path, users(), Description("mine", num_classes=3))


def experiment_on(store, clients_per_round):
    return Experiment(
        store=str(store.path),
        model="logistic_regression",
        num_local_steps=1,
        batch_size=2,
        total_rounds=20,
        clients_per_round=clients_per_round,
    )


def test_a_store_whose_training_users_have_no_rows_is_refused_before_it_begins(
    tmp_path,
):
    store = population_of(tmp_path / "store", [0, 0, 0])
    with pytest.raises(
        errors.DataError, match=r"not one of its 3 training users has ad"
    ):
        train(experiment_on(store, 2), store)


def test_a_cohort_without_rows_is_no_matter_of_the_learning_rate(tff, tmp_path):
    store = population_of(tmp_path / "store", [6, 0, 0, 0, 0, 0])
    with pytest.raises(errors.DataError, match=r"Round \d+: not one of the 2 users dr"):
        train(experiment_on(store, 2), store)


def test_users_without_rows_are_not_told_as_updates_that_are_not_finite(
    tff, tmp_path, capfd
):
    store = population_of(tmp_path / "store", [6, 6, 0, 0])
    metrics = train(experiment_on(store, 4), store).metrics
    assert (metrics["num_users_taken"] == 2).all()
    assert "not finite" not in capfd.readouterr().err

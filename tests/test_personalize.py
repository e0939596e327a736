"""Users' adapted weights on disk are those that evaluation measures."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import batch_of, relative_error
from tff_perfedavg import errors
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.personalize import (
    Personalization,
    personalize,
)
from tff_perfedavg.experiments.files.personalized_store import PersonalizedStore
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.optimization.config import AdaptationConfig

CONFIG = AdaptationConfig(0.1, 3)
MODEL = mlp((8, 8), 10, hidden=(7,))
WEIGHTS = MODEL.init(3)


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    return build_population(Experiment(), tmp_path_factory.mktemp("stores"))


def source(population, config=CONFIG, seed=0):
    return Personalization(MODEL, WEIGHTS, population, config, seed)


@pytest.fixture
def saved(population, tmp_path):
    users = population.new_users
    return personalize(source(population), users, tmp_path / "adapted")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, batch_size=4),
        dataclasses.replace(CONFIG, num_rows=5),
        dataclasses.replace(CONFIG, num_steps=0),
    ],
)
def test_saved_weights_are_what_evaluation_measures(tff, population, tmp_path, config):
    from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users

    measured = evaluate_users(MODEL, WEIGHTS, population, config, seed=5)
    last = measured[measured["step"] == config.num_steps].set_index("user")
    users = [int(population.new_users[0]), 0, 7]
    saved = personalize(source(population, config, 5), users, tmp_path / "adapted")
    assert list(saved.users) == sorted(users)
    for user in users:
        rows = population.scaled(population.evaluation(user))
        weights = [tf.constant(w) for w in saved.weights(user)]
        loss = MODEL.batch_loss(weights, batch_of(rows.x, rows.y.astype(np.int32)))
        assert np.isclose(loss, last["loss"][user], rtol=1e-5)


def test_full_batch_adaptation_equals_steps_taken_by_hand(saved, population):
    user = int(population.new_users[1])
    rows = population.scaled(population.adaptation(user))
    batch = batch_of(rows.x, rows.y.astype(np.int32))
    weights = [tf.Variable(w) for w in WEIGHTS]
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = MODEL.batch_loss(weights, batch)
        for w, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            w.assign_sub(0.1 * gradient)
    assert relative_error(saved.weights(user), weights) < 1e-5


def test_it_is_read_back_with_where_it_came_from(saved, population):
    again = PersonalizedStore.open(saved.path)
    again.verify()
    assert again.provenance["adaptation"] == dataclasses.asdict(CONFIG)
    assert again.provenance["store"] == population.fingerprint
    user = int(again.users[0])
    assert relative_error(again.weights(user), saved.weights(user)) == 0
    with pytest.raises(errors.DataError, match=r"has no weights of user 0; it has 6"):
        again.weights(0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: (p / "weights.bin").write_bytes(b"short"),
            "weights.bin has 5 bytes",
        ),
        (lambda p: (p / "users.npy").unlink(), "users.npy is missing"),
        (lambda p: (p / "personalized.json").write_text("{"), "is unreadable"),
        (lambda p: (p / "personalized.json").unlink(), "No personalized weights at"),
        (
            lambda p: (p / "personalized.json").write_text(
                json.dumps({"format_version": 9, "files": {}})
            ),
            "format version 9",
        ),
    ],
)
def test_a_damaged_store_is_refused_by_name(saved, damage, message):
    damage(saved.path)
    with pytest.raises(errors.DataError, match=message):
        PersonalizedStore.open(saved.path)


def test_an_altered_weight_is_found(saved):
    path = saved.path / "weights.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match=r"weights\.bin is not what was written"):
        PersonalizedStore.open(saved.path).verify()


def test_what_cannot_be_written_leaves_nothing(saved, population, tmp_path):
    def write(users, place):
        personalize(source(population), users, tmp_path / place)

    with pytest.raises(errors.DataError, match=r"users 0 to 25; 26 is none"):
        write([3, 26], "other")
    with pytest.raises(errors.DataError, match=r"users 0 to 25; 10{30} is none"):
        write([3, 10**30], "other")
    with pytest.raises(errors.DataError, match="none was given"):
        write([], "other")
    with pytest.raises(errors.DataError, match="a file is where a directory is needed"):
        write([3], "adapted/users.npy/other")
    with pytest.raises(errors.DataError, match="adapted exists already"):
        write([3], "adapted")
    assert [p.name for p in tmp_path.iterdir()] == ["adapted"]

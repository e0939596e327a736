"""Training without federation, alone and pooled, against float64 NumPy."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests import reference
from tests.helpers import relative_error, toy_user
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.models.dense import mlp, mlp_regressor
from tff_perfedavg.optimization.adaptation import Adaptation
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.rate_choice import adapt_at_best_rate

MODEL = mlp((4,), 3, hidden=(5,))
BY_HAND = reference.TwoLayerNetwork()
WEIGHTS = MODEL.init(1)
KEYS = ["users", "user", "step"]


class LinearRegression:
    """outputs = x W + b with the mean squared error."""

    def loss(self, weights, x, y):
        return np.mean((x @ weights[0] + weights[1] - y) ** 2)

    def gradient(self, weights, x, y):
        error = 2 * (x @ weights[0] + weights[1] - y) / y.size
        return [x.T @ error, error.sum(0)]


def write(path, rng, sizes, num_new=1):
    """A store of users with (adaptation, evaluation) rows, the last ones new."""
    first_new = len(sizes) - num_new
    users = [
        User(*(Rows(*toy_user(rng, n)) for n in size), is_new=number >= first_new)
        for number, size in enumerate(sizes)
    ]
    return UserStore.write(path, users, Description("toy", 3))


def evaluate(population, config, rates, *, model=None, weights=WEIGHTS, num_users=0):
    from tff_perfedavg.experiments.evaluation import local_training

    return local_training.evaluate_local_training(
        model or MODEL,
        weights,
        population,
        config,
        rates,
        local_training.Draws(7, num_users),
    )


def by_reference(model, weights, adaptation, rate, num_steps):
    """Weights before and after full-batch steps."""
    points = [[w.astype(np.float64) for w in weights]]
    for _ in range(num_steps):
        gradient = model.gradient(points[-1], *adaptation)
        points.append(reference.axpy(-rate, gradient, points[-1]))
    return points


def test_every_user_alone_equals_the_reference(tff, tmp_path):
    sizes = [(6, 9), (25, 4), (3, 7), (12, 0), (0, 5), (8, 8)]
    store = write(tmp_path / "store", np.random.default_rng(2), sizes)
    found = evaluate(store, AdaptationConfig(0.3, 3), [0.3, 1e30])
    assert {*found["algorithm"]} == {*found["baseline"]}
    chosen = set()
    for user, (num_rows, num_held_out) in enumerate(sizes):
        local, converged = (
            rows.set_index("step")
            for _, rows in found[found["user"] == user].groupby("baseline", sort=False)
        )
        adaptation, held_out = (
            (np.float64(rows.x), rows.y)
            for rows in (store.adaptation(user), store.evaluation(user))
        )
        assert (local["num_adaptation_examples"] == num_rows).all()
        if not num_held_out:
            assert local[["loss", "accuracy"]].isna().all(axis=None)
            continue
        if not num_rows:
            expected = BY_HAND.loss(WEIGHTS, *held_out)
            assert np.allclose([*local["loss"], *converged["loss"]], expected)
            continue
        points = {
            rate: by_reference(BY_HAND, WEIGHTS, adaptation, rate, 3)
            for rate in (0.01, 0.1, 0.3, 1.0)
        }
        for step in range(4):
            after = {rate: of_rate[step] for rate, of_rate in points.items()}
            best = min(after, key=lambda r: BY_HAND.loss(after[r], *adaptation))
            chosen.add(best)
            assert np.isclose(local["learning_rate"][step], best)
            expected = BY_HAND.loss(after[best], *held_out)
            assert np.isclose(local["loss"][step], expected, rtol=1e-4)
        weights, steps = reference.train_to_convergence(BY_HAND, WEIGHTS, *adaptation)
        assert converged["num_steps_taken"][0] == steps
        assert np.isclose(converged["loss"][0], BY_HAND.loss(weights, *held_out), 1e-3)
        right = BY_HAND.logits(weights, held_out[0]).argmax(1) == held_out[1]
        assert np.isclose(converged["accuracy"][0], right.mean())
    # Users differ, and numbers of steps without a step's lowest do.
    assert len(chosen) > 1


def test_what_a_step_gives_does_not_depend_on_how_many_follow():
    # One step at 1 ends in the middle of the steep direction; along the other one, many
    # at 1.6 get further.
    def loss(weights, batch):
        x, y = tf.unstack(weights[0])
        return 0.5 * ((x - batch) ** 2 + 0.2 * y**2)

    def adapted(num_steps):
        return tf.function(
            lambda: adapt_at_best_rate(
                loss,
                [tf.constant([1.0, 1.0])],
                lambda step: tf.constant(0.0),
                Adaptation(1.0, num_steps),
                [1.0, 1.6, 1e30],
                lambda weights: tf.stack([weights[0][0], loss(weights, 0.0)]),
            )
        )()

    few, more = adapted(1), adapted(6)
    for of_few, of_more in zip(few, more, strict=True):
        assert np.allclose(of_few, of_more[:2])
    assert np.allclose(more[1], [1, 1, 1, 1, 1.6, 1.6, 1.6])


def test_evaluation_rows_choose_nothing(tff, tmp_path):
    rng = np.random.default_rng(3)
    adaptation = [Rows(*toy_user(rng, 10)) for _ in range(4)]
    found = []
    for name in ("one", "other"):
        users = [User(rows, Rows(*toy_user(rng, 6))) for rows in adaptation]
        store = UserStore.write(tmp_path / name, users, Description("toy", 3))
        found.append(evaluate(store, AdaptationConfig(0.3, 2), [0.3]))
    choices = ["learning_rate", "num_steps_taken"]
    pd.testing.assert_frame_equal(found[0][choices], found[1][choices])
    assert not np.allclose(found[0]["loss"], found[1]["loss"])


def test_steps_on_batches_are_the_adaptations_and_users_are_a_sample(
    tff, tmp_path, monkeypatch
):
    from tff_perfedavg.experiments.evaluation import local_training
    from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users

    store = write(tmp_path / "store", np.random.default_rng(4), [(9, 5)] * 7, 2)
    config = AdaptationConfig(0.5, 2, batch_size=3, num_rows=6)
    monkeypatch.setattr(local_training, "LEARNING_RATES", ())
    monkeypatch.setattr(local_training, "MOST_USERS", 3)
    found = evaluate(store, config, [0.5])
    local = found[found["baseline"] == local_training.LOCAL]
    counts = local.groupby("users")["user"].nunique()
    assert counts.to_dict() == {"seen": 3, "new": 2}
    adapted = evaluate_users(MODEL, WEIGHTS, store, config, seed=7)
    both = local.merge(adapted, on=KEYS, suffixes=("", "_adapted"))
    assert len(both) == len(local)
    assert np.allclose(both["loss"], both["loss_adapted"])
    assert (both["num_adaptation_examples"] == 6).all()


@pytest.mark.parametrize("num_users", [2, 4])
def test_who_trains_alone_is_of_those_who_are_evaluated(
    tff, tmp_path, monkeypatch, num_users
):
    from tff_perfedavg.experiments.evaluation import local_training
    from tff_perfedavg.experiments.evaluation.evaluate_users import choose_users

    store = write(tmp_path / "store", np.random.default_rng(4), [(9, 5)] * 12, 2)
    monkeypatch.setattr(local_training, "MOST_USERS", 3)
    found = evaluate(store, AdaptationConfig(0.5, 1), [0.5], num_users=num_users)
    measured = choose_users(store, num_users, seed=7)
    for group, rows in found.groupby("users"):
        users = set(rows["user"])
        assert users <= {*measured[group]}
        assert len(users) == min(3, num_users, len(measured[group]))


def test_a_regressor_trains_alone_too(tff, tmp_path):
    rng = np.random.default_rng(5)

    def rows(num_rows):
        x = rng.normal(size=[num_rows, 2])
        return Rows(x.astype(np.float32), (x @ [[1], [-2]]).astype(np.float32))

    store = UserStore.write(
        tmp_path / "store",
        [User(rows(8), rows(5)) for _ in range(3)],
        Description("toy", None),
    )
    model, by_hand = mlp_regressor((2,), 1, hidden=()), LinearRegression()
    weights = model.init(0)
    found = evaluate(store, AdaptationConfig(0.1, 2), [], model=model, weights=weights)
    assert found["accuracy"].isna().all()
    for user in range(3):
        adaptation, held_out = (
            (np.float64(r.x), r.y)
            for r in (store.adaptation(user), store.evaluation(user))
        )
        *local, converged = found[found["user"] == user]["loss"]
        points = [
            by_reference(by_hand, weights, adaptation, rate, 2)
            for rate in (0.01, 0.1, 1.0)
        ]
        best = [
            min(after, key=lambda p: by_hand.loss(p, *adaptation))
            for after in zip(*points, strict=True)
        ]
        assert np.allclose(local, [by_hand.loss(p, *held_out) for p in best], 1e-4)
        alone, _ = reference.train_to_convergence(by_hand, weights, *adaptation)
        assert np.isclose(converged, by_hand.loss(alone, *held_out), 1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_pooled_training_draws_rows_of_training_users_alone(
    tmp_path, monkeypatch, seed
):
    from tff_perfedavg.experiments.evaluation import pooled_training

    monkeypatch.setattr(pooled_training, "NUM_STEPS", 4)
    sizes = [(6, 3), (25, 2), (8, 8)]
    store = write(tmp_path / "store", np.random.default_rng(6), sizes)
    found = pooled_training.train_pooled(MODEL, WEIGHTS, store, seed=seed)
    pool = [store.adaptation(user) for user in store.training_users]
    x = np.concatenate([rows.x for rows in pool]).astype(np.float64)
    y = np.concatenate([rows.y for rows in pool])
    adam = reference.Adam(WEIGHTS, 0.001)
    for step in range(4):
        chosen = np.random.default_rng([seed, 5, step]).integers(len(y), size=64)
        adam.step(BY_HAND.gradient(adam.weights, x[chosen], y[chosen]))
    assert relative_error(found, adam.weights) < 1e-4

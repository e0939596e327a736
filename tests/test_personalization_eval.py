import collections
import itertools
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import family_reference, reference
from tests.helpers import toy_user
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.learned_rates import LearnedRates

MODEL = mlp((4,), 3, hidden=(5,))
BY_HAND = reference.TwoLayerNetwork()
WEIGHTS = MODEL.init(1)


def evaluate(tff, config, clients):
    """Results for a list of (user, adaptation rows, evaluation rows)."""
    from tff_perfedavg.federated.client_data import client_dataset
    from tff_perfedavg.federated.personalization_eval import (
        build_personalization_eval,
    )

    computation = build_personalization_eval(MODEL, config, seed=7)
    values = [
        collections.OrderedDict(
            adaptation=client_dataset(user, *adaptation),
            evaluation=client_dataset(user, *evaluation),
        )
        for user, adaptation, evaluation in clients
    ]
    weights = tff.learning.models.ModelWeights(tuple(WEIGHTS), ())
    return computation(weights, values)


def by_reference(adaptation, evaluation, rate, num_steps):
    """Loss and accuracy on the evaluation rows before and after full-batch steps."""
    weights = [w.astype(np.float64) for w in WEIGHTS]
    x, y = evaluation
    losses, accuracies = [], []
    for step in range(num_steps + 1):
        if step:
            gradient = BY_HAND.gradient(weights, *adaptation)
            weights = reference.axpy(-rate, gradient, weights)
        losses.append(BY_HAND.loss(weights, x, y))
        accuracies.append(np.mean(BY_HAND.logits(weights, x).argmax(1) == y))
    return losses, accuracies


@pytest.fixture
def clients():
    rng = np.random.default_rng(2)
    return [(n, toy_user(rng, 6 + n), toy_user(rng, 9 - n)) for n in (4, 0, 2)]


def test_every_step_of_every_user_equals_the_reference(tff, clients):
    results = evaluate(tff, AdaptationConfig(0.5, num_steps=4), clients)
    for (user, adaptation, evaluation), result in zip(clients, results, strict=True):
        losses, accuracies = by_reference(adaptation, evaluation, 0.5, 4)
        assert result["user"] == user
        assert result["loss"].shape == (5,)
        assert np.allclose(result["loss"], losses, rtol=1e-5)
        assert np.allclose(result["accuracy"], accuracies)
        assert result["num_adaptation_examples"] == len(adaptation[1])
        assert result["num_evaluation_examples"] == len(evaluation[1])


@pytest.mark.parametrize("grain", [None, "per_tensor"])
def test_what_moves_its_pull_and_learned_rates_equal_the_reference(
    tff, clients, monkeypatch, grain
):
    logs = np.array([0.5, -0.3, 0.2, 0.1], np.float32)
    learned = None if grain is None else LearnedRates(grain, scale=2.0)
    moves, moving = ("body", (0, 1)) if grain is None else ("all", range(4))
    config = AdaptationConfig(0.5, 3, moves=moves, pull=0.6, learned=learned)
    held = [] if grain is None else [2.0 * logs]
    monkeypatch.setattr(sys.modules[__name__], "WEIGHTS", [*WEIGHTS, *held])
    results = evaluate(tff, config, clients)
    start = [w.astype(np.float64) for w in WEIGHTS[:4]]
    for (_, adaptation, rows), result in zip(clients, results, strict=True):
        points = family_reference.user_steps(
            BY_HAND,
            start,
            adaptation,
            0.5,
            3,
            moving,
            pull=0.6,
            factors=None if grain is None else np.exp(logs),
        )
        losses = [BY_HAND.loss(weights, *rows) for weights in points]
        assert np.allclose(result["loss"], losses, rtol=1e-5)


def test_evaluation_rows_have_no_part_in_adapting(tff, clients):
    # Evaluation rows are replaced by one whose loss gives the adapted weights away.
    probe = (np.ones([1, 4], np.float32), np.zeros([1], np.int32))
    probed = [(user, adaptation, probe) for user, adaptation, _ in clients]
    results = evaluate(tff, AdaptationConfig(0.5, num_steps=2), probed)
    for (_, adaptation, _), result in zip(probed, results, strict=True):
        losses, _ = by_reference(adaptation, probe, 0.5, 2)
        assert np.allclose(result["loss"], losses, rtol=1e-5)


def test_a_step_on_a_batch_uses_that_many_rows_of_the_users_once(tff, clients):
    results = evaluate(tff, AdaptationConfig(0.5, num_steps=1, batch_size=2), clients)
    drawn = set()
    for (_, (x, y), evaluation), result in zip(clients, results, strict=True):
        # Of all pairs of the user's rows, one gives this loss.
        pairs = [*itertools.combinations(range(len(y)), 2)]
        after = [
            by_reference((x[[*pair]], y[[*pair]]), evaluation, 0.5, 1)[0][1]
            for pair in pairs
        ]
        (place,) = np.flatnonzero(np.isclose(result["loss"][1], after, rtol=1e-5))
        drawn.add(pairs[place])
    assert len(drawn) > 1


def test_a_batch_larger_than_the_split_is_the_split_and_draws_repeat(tff, clients):
    whole, padded, small, again = (
        evaluate(tff, AdaptationConfig(0.5, num_steps=2, batch_size=size), clients)
        for size in (None, 50, 2, 2)
    )
    for a, b, c, d in zip(whole, padded, small, again, strict=True):
        assert np.allclose(a["loss"], b["loss"], rtol=1e-5)
        assert np.array_equal(c["loss"], d["loss"])
        assert not np.allclose(a["loss"][1:], c["loss"][1:], rtol=1e-5)


def test_no_step_measures_the_initial_weights(tff, clients):
    results = evaluate(tff, AdaptationConfig(0.5, num_steps=0), clients)
    for (_, adaptation, evaluation), result in zip(clients, results, strict=True):
        losses, _ = by_reference(adaptation, evaluation, 0.5, 0)
        assert np.allclose(result["loss"], losses, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_users_without_rows_are_measured_as_far_as_they_can_be(tff, batch_size):
    rng = np.random.default_rng(3)
    some, none = toy_user(rng, 5), toy_user(rng, 0)
    config = AdaptationConfig(0.5, num_steps=2, batch_size=batch_size)
    unadapted, unmeasured = evaluate(tff, config, [(0, none, some), (1, some, none)])
    assert np.ptp(unadapted["loss"]) == 0
    assert unadapted["num_adaptation_examples"] == 0
    assert np.isnan(unmeasured["loss"]).all()
    assert np.isnan(unmeasured["accuracy"]).all()
    assert unmeasured["user"] == 1


def test_rows_per_class_are_the_first_of_each_class_in_one_shuffle():
    labels = np.array([0, 2, 0, 0, 2, 2, 2, 5], np.int32)
    rows = batches.UserRows.of(tf.range(8), tf.constant(labels))

    def chosen(most, user=3):
        key = batches.user_key(tf.constant(batches.seed_pair(1)), tf.constant(-2), user)
        return batches.all_rows(batches.some_rows_per_class(rows, key, most))

    kept = {}
    for most in (1, 2, 3, 9):
        numbers = chosen(most).x.numpy().tolist()
        assert len({*numbers}) == len(numbers)
        assert labels[numbers].tolist() == chosen(most).y.numpy().tolist()
        counts = np.bincount(labels[numbers], minlength=6)
        assert counts.tolist() == np.minimum(np.bincount(labels), most).tolist()
        kept[most] = {*numbers}
    assert kept[1] < kept[2] < kept[3] < kept[9] == {*range(8)}
    # By lot, of every user anew.
    assert len({tuple(chosen(1, user).x.numpy()) for user in range(6)}) > 2


def test_results_count_the_rows_of_each_class_that_were_used(tff):
    import tff_perfedavg as pfa

    model = pfa.models.logistic_regression((4,), 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=[9, 4]).astype(np.float32)
    y = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2], np.int32)
    config = AdaptationConfig(0.1, 1, num_rows=2, rows_per_class=True)
    evaluate = pfa.build_personalization_eval(model, config)
    value = collections.OrderedDict(
        adaptation=pfa.client_dataset(0, x, y), evaluation=pfa.client_dataset(0, x, y)
    )
    weights = tff.learning.models.ModelWeights(tuple(model.init(0)), ())
    (result,) = evaluate(weights, [value])
    assert result["num_adaptation_examples"] == 6
    assert result["num_evaluation_examples"] == 9

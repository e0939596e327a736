"""The TFF learning processes against a plain TensorFlow loop and the reference."""

import collections
import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.helpers import relative_error, rows_of, toy_user
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.local_update import local_update

MODEL = mlp((4,), 3, hidden=(5,))
SEED = 11
CONFIG = PerFedAvgConfig(
    inner_learning_rate=0.3,
    outer_learning_rate=0.07,
    num_local_steps=4,
    support_batch_size=4,
    query_batch_size=5,
    hessian_batch_size=6,
    hessian_batch="own",
)
FED_AVG = FedAvgConfig(learning_rate=0.07, num_local_steps=4, batch_size=4)
# From plenty of rows to fewer than one batch, and a single row.
SIZES = [30, 3, 12, 1]


def users():
    rng = np.random.default_rng(5)
    return {number: toy_user(rng, size) for number, size in enumerate(SIZES)}


def build(config, **arguments):
    from tff_perfedavg.federated.builders import build_fed_avg, build_per_fed_avg

    builder = build_fed_avg if isinstance(config, FedAvgConfig) else build_per_fed_avg
    return builder(MODEL, config, seed=SEED, **arguments)


@functools.cache
def built(config):
    """A process of the defaults, built once: it has no state of its own."""
    return build(config)


def as_clients(chosen):
    from tff_perfedavg.federated.client_data import client_dataset

    return [client_dataset(number, *rows) for number, rows in chosen.items()]


def trained(process, cohorts):
    """Weights after one round per cohort, and the last round's metrics."""
    state = process.initialize()
    metrics = None
    for cohort in cohorts:
        state, metrics = process.next(state, as_clients(cohort))
    weights = process.get_model_weights(state).trainable
    return [np.asarray(w) for w in weights], metrics["client_work"]


def drawn_rows(number, num_rows, round_number, config):
    """The row numbers of every step and role of one user's round."""
    sizes = (
        config.support_batch_size,
        config.query_batch_size,
        config.hessian_batch_size,
    )

    @tf.function
    def draw():
        rows = rows_of(tf.zeros([num_rows]), tf.range(num_rows))
        key = batches.user_key(
            tf.constant(batches.seed_pair(SEED)),
            tf.constant(round_number),
            tf.constant(number),
        )
        draw_step = batches.batch_source(rows, key, config.num_local_steps, sizes)
        return [draw_step(step) for step in range(config.num_local_steps)]

    return [[b.y.numpy()[b.mask.numpy() == 1] for b in roles] for roles in draw()]


def plain_round(weights, cohort, round_number, config):
    """A round by the library's local updates in a plain `tf.function`."""
    per_user = []
    for number, (x, y) in cohort.items():

        @tf.function
        def update(number=number, x=x, y=y):
            rows = rows_of(x, y)
            key = batches.user_key(
                tf.constant(batches.seed_pair(SEED)),
                tf.constant(round_number),
                tf.constant(number),
            )
            return local_update(
                MODEL.batch_loss,
                [tf.constant(w) for w in weights],
                batches.batch_source(
                    rows, key, config.num_local_steps, config.batch_sizes
                ),
                config.build(),
            )

        per_user.append(update())
    weights = reference.mean([u.state for u in per_user], [1] * len(per_user))
    return [np.asarray(w) for w in weights], per_user


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, variant="first_order"),
        dataclasses.replace(CONFIG, variant="hessian_free"),
        FED_AVG,
    ],
    ids=["exact", "first_order", "hessian_free", "fed_avg"],
)
def test_two_rounds_equal_a_plain_tensorflow_loop(tff, config):
    population = users()
    cohorts = [population, {n: population[n] for n in (2, 0)}]
    ours, metrics = trained(built(config), cohorts)
    weights = MODEL.init(SEED)
    for round_number, cohort in enumerate(cohorts):
        before = weights
        weights, per_user = plain_round(weights, cohort, round_number, config)
    assert relative_error(ours, weights) < 1e-6
    support = np.mean([u.measures["support_loss"] for u in per_user])
    query = np.mean([u.measures["query_loss"] for u in per_user])
    norms = [
        np.sqrt(sum((d**2).numpy().sum() for d in reference.axpy(-1, u[0], before)))
        for u in per_user
    ]
    assert np.isclose(metrics["support_loss"], support, rtol=1e-5)
    assert np.isclose(metrics["query_loss"], query, rtol=1e-5)
    assert np.isclose(metrics["adaptation_gain"], support - query, atol=1e-6)
    assert np.isclose(metrics["update_norm"], np.mean(norms), rtol=1e-5)
    assert (metrics["num_users_taken"], metrics["num_users_excluded"]) == (2, 0)


@pytest.mark.parametrize("weighting", ["uniform", "num_examples"])
def test_a_round_equals_the_float64_reference(tff, weighting):
    from tff_perfedavg.federated.client_work import ClientWeighting

    population = users()
    process = build(CONFIG, client_weighting=ClientWeighting(weighting))
    ours, _ = trained(process, [population])
    by_hand = reference.TwoLayerNetwork()
    initial = [w.astype(np.float64) for w in MODEL.init(SEED)]
    per_user = []
    for number, (x, y) in population.items():
        steps = [
            [(x[chosen].astype(np.float64), y[chosen]) for chosen in roles]
            for roles in drawn_rows(number, len(y), 0, CONFIG)
        ]
        per_user.append(reference.local_weights(by_hand, initial, steps, CONFIG))
    user_weights = [1] * len(SIZES) if weighting == "uniform" else SIZES
    expected = reference.mean(per_user, user_weights)
    # Against the change, which is smaller than the weights.
    change = reference.axpy(-1, initial, ours)
    assert relative_error(change, reference.axpy(-1, initial, expected)) < 1e-4


def test_the_mean_over_users_is_uniform_unless_asked_otherwise(tff):
    from tff_perfedavg.federated.client_work import ClientWeighting

    population = users()
    default, _ = trained(built(CONFIG), [population])
    uniform, _ = trained(
        build(CONFIG, client_weighting=ClientWeighting.UNIFORM), [population]
    )
    weighted, _ = trained(
        build(CONFIG, client_weighting=ClientWeighting.NUM_EXAMPLES), [population]
    )
    assert relative_error(default, uniform) == 0
    assert relative_error(default, weighted) > 1e-3


def test_a_user_with_one_row_trains(tff):
    weights, metrics = trained(built(CONFIG), [{3: users()[3]}])
    assert metrics["num_users_taken"] == 1
    assert relative_error(weights, MODEL.init(SEED)) > 1e-3


def test_a_repeated_run_is_identical_and_another_seed_is_not(tff):
    from tff_perfedavg.federated.builders import build_per_fed_avg

    cohorts = [users()] * 3
    first, first_metrics = trained(build(CONFIG), cohorts)
    second, second_metrics = trained(built(CONFIG), cohorts)
    other, _ = trained(build_per_fed_avg(MODEL, CONFIG, seed=SEED + 1), cohorts)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first_metrics == second_metrics
    assert relative_error(first, other) > 1e-3


def test_the_order_of_users_and_the_cut_into_batches_have_no_influence(tff):
    population = users()
    backwards = dict(reversed(population.items()))
    first, _ = trained(built(CONFIG), [population])
    second, _ = trained(built(CONFIG), [backwards])
    assert relative_error(first, second) < 1e-6

    def in_batches(number, x, y):
        pieces = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
        return pieces.map(
            lambda x, y: collections.OrderedDict(user=np.int32(number), x=x, y=y)
        )

    process = built(CONFIG)
    clients = [in_batches(n, *rows) for n, rows in population.items()]
    state = process.next(process.initialize(), clients).state
    third = process.get_model_weights(state).trainable
    assert relative_error(first, third) == 0


def test_users_without_a_finite_update_are_left_out_and_counted(tff):
    population = users()
    x, y = population[2]
    broken = {**population, 2: (np.full_like(x, np.inf), y)}
    broken[9] = (x[:0], y[:0])
    ours, metrics = trained(built(CONFIG), [broken])
    without, _ = trained(built(CONFIG), [{n: population[n] for n in (0, 1, 3)}])
    assert relative_error(ours, without) < 1e-6
    assert (metrics["num_users_taken"], metrics["num_users_excluded"]) == (3, 2)
    assert np.isfinite(metrics["support_loss"])
    assert np.isfinite(metrics["update_norm"])


def test_tff_aggregators_run_unchanged(tff):
    population = users()
    mean, _ = trained(built(CONFIG), [population])
    # Zeroing and clipping, at thresholds these updates never reach.
    robust = tff.learning.robust_aggregator()
    with_robust, _ = trained(build(CONFIG, model_aggregator=robust), [population])
    assert relative_error(with_robust, mean) < 1e-6
    # Clipping each update to a norm it does exceed.
    clipping = tff.aggregators.clipping_factory(
        clipping_norm=0.01, inner_agg_factory=tff.aggregators.MeanFactory()
    )
    clipped, _ = trained(build(CONFIG, model_aggregator=clipping), [population])
    change = reference.axpy(-1, MODEL.init(SEED), clipped)
    assert np.sqrt(sum((c**2).sum() for c in change)) < 0.0101
    unweighted = tff.aggregators.UnweightedMeanFactory()
    plain, _ = trained(build(CONFIG, model_aggregator=unweighted), [population])
    assert relative_error(plain, mean) < 1e-6


def test_tff_server_optimizers_run_unchanged(tff):
    population = users()
    initial = MODEL.init(SEED)
    mean, _ = trained(built(CONFIG), [population])
    half = tff.learning.optimizers.build_sgdm(0.5)
    halved, _ = trained(build(CONFIG, server_optimizer=half), [population])
    expected = [(a + b) / 2 for a, b in zip(initial, mean, strict=True)]
    assert relative_error(halved, expected) < 1e-6
    adam = tff.learning.optimizers.build_adam(0.01)
    moved, _ = trained(build(CONFIG, server_optimizer=adam), [population])
    # Adam's first step moves each weight by its rate.
    change = np.concatenate(
        [np.abs(a - b).ravel() for a, b in zip(moved, initial, strict=True)]
    )
    assert np.isclose(np.median(change), 0.01, rtol=1e-2)


def test_initialize_and_next_are_federated_computations(tff):
    process = built(CONFIG)
    assert isinstance(process, tff.learning.templates.LearningProcess)
    assert process.initialize.type_signature.result.placement is tff.SERVER
    state, clients = process.next.type_signature.parameter
    assert state.placement is tff.SERVER
    assert clients.placement is tff.CLIENTS
    initial = process.get_model_weights(process.initialize()).trainable
    assert relative_error(initial, MODEL.init(SEED)) == 0


def test_rows_as_numpy_makes_them_are_a_clients(tff):
    from tff_perfedavg.federated.client_data import client_dataset

    x, y = np.ones([3, 4]), np.arange(3)
    assert (x.dtype, y.dtype) == (np.float64, np.int64)
    (element,) = client_dataset(7, x, y)
    types = {name: value.dtype.name for name, value in element.items()}
    assert types == {"user": "int32", "x": "float32", "y": "int32"}
    assert np.array_equal(element["x"], x)
    assert np.array_equal(element["y"], y)
    # Types that somebody chose, and labels that are numbers, stay.
    (element,) = client_dataset(7, np.ones([3, 4], np.uint8), np.ones([3, 1]))
    assert element["x"].dtype.name == "uint8"
    assert element["y"].dtype.name == "float32"

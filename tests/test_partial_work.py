"""Partial work: users who do fewer of their local steps, in every client form."""

import collections

import numpy as np
import pytest
import tensorflow as tf

import tff_perfedavg as pfa
from tests import reference
from tests.helpers import relative_error, rows_of, toy_store
from tests.needs import slow_but
from tff_perfedavg import errors
from tff_perfedavg.algorithms.meta_sgd import MetaSgdConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.federated.client_data import SequenceClientData
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.optimization import batches

MODEL = mlp((4,), 3, hidden=(5,))
SEED, SIZES = 11, (30, 3, 12, 1)
STEPS = (1, 4, 2, 3)
CONFIGS = {
    "exact": PerFedAvgConfig(0.3, 0.07, 4, 4, 4, 4),
    # A state of more than weights.
    "meta_sgd": MetaSgdConfig(0.3, 0.07, 4, 4, 4, 4),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("partial") / "store", SIZES)


def expected_round(config, store, steps):
    """What the server has after a round, and the users' mean query losses."""
    algorithm = config.build()
    sent = algorithm.parameters(MODEL.init(SEED))

    def update(number):
        rows = store.adaptation(number)
        draw = batches.batch_source(
            rows_of(rows.x, rows.y),
            batches.user_key(
                tf.constant(batches.seed_pair(SEED)),
                tf.constant(0),
                tf.constant(number),
            ),
            algorithm.num_steps,
            algorithm.batch_sizes,
        )
        start = [tf.constant(p) for p in sent]
        state, losses = algorithm.init(start), []
        for step in range(steps[number]):
            of_roles = dict(zip(algorithm.roles, draw(tf.constant(step)), strict=True))
            state, measured = algorithm.step(MODEL.batch_loss, state, of_roles)
            losses.append(measured["query_loss"])
        return algorithm.update(start, state), tf.reduce_mean(losses)

    found = [tf.function(update, autograph=False)(n) for n in range(len(SIZES))]
    mean = reference.mean([u for u, _ in found], [1] * len(found))
    return reference.axpy(-1.0, mean, sent), np.mean([loss for _, loss in found])


def form_of(name, store, *, with_steps):
    if name == "users":
        return pfa.federated.StoreClientData(store, MODEL, with_steps=with_steps)
    return pfa.federated.BlockClientData(store, MODEL, 2, name, with_steps=with_steps)


def round_of(config, client_data, clients):
    process = pfa.build_process(MODEL, config, client_data=client_data, seed=SEED)
    output = process.next(process.initialize(), clients)
    weights = process.get_model_weights(output.state).trainable
    return [np.asarray(w) for w in weights], output.metrics["client_work"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("exact", "users"),
        pytest.param("exact", "loop", marks=pytest.mark.slow),
        ("exact", "vectorized"),
        pytest.param("meta_sgd", "vectorized", marks=pytest.mark.slow),
    ],
)
def test_each_user_does_its_steps_and_no_more(tff, store, name, form):
    config, users = CONFIGS[name], np.arange(len(SIZES))
    data = form_of(form, store, with_steps=True)
    found, metrics = round_of(config, data, data.clients(users, STEPS))
    expected, loss = expected_round(config, store, STEPS)
    assert relative_error(found[:4], expected[:4]) < 1e-6
    assert metrics["query_loss"] == pytest.approx(loss, rel=1e-5)
    # Users who did all of their steps would have led elsewhere.
    whole, _ = expected_round(config, store, [4] * 4)
    assert relative_error(found[:4], whole[:4]) > 1e-3


@pytest.mark.parametrize(
    "form", slow_but({"users", "vectorized"}, ["users", "loop", "vectorized"])
)
def test_all_steps_are_the_bits_of_whole_work(tff, store, form):
    users, config = np.arange(len(SIZES)), CONFIGS["exact"]
    whole = form_of(form, store, with_steps=False)
    partial = form_of(form, store, with_steps=True)
    expected, _ = round_of(config, whole, whole.clients(users))
    # More than there are is all of them.
    found, _ = round_of(config, partial, partial.clients(users, [4, 4, 9, 4]))
    for a, b in zip(found, expected, strict=True):
        assert a.tobytes() == b.tobytes()


def test_sequences_tell_their_steps_beside_them(tff, store):
    config = CONFIGS["exact"]
    data = SequenceClientData(MODEL, with_steps=True)
    clients = [
        collections.OrderedDict(
            rows=pfa.client_dataset(number, *store.adaptation(number)),
            steps=np.int32(STEPS[number]),
        )
        for number in range(len(SIZES))
    ]
    found, _ = round_of(config, data, clients)
    expected, _ = expected_round(config, store, STEPS)
    assert relative_error(found, expected) < 1e-6


def test_steps_are_given_where_they_are_said_and_nowhere_else(store):
    for with_steps, steps in ((True, None), (False, STEPS)):
        data = form_of("users", store, with_steps=with_steps)
        with pytest.raises(errors.ConfigError, match="let both say the same"):
            data.clients(range(4), steps)

"""Rounds of the family through TFF: every form of client data, noise, TFF's own."""

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tff_perfedavg as pfa
from tests import family_reference, reference
from tests.helpers import batch_of, relative_error, rows_of, toy_store, toy_user
from tff_perfedavg.algorithms.fed_babu import FedBabuConfig
from tff_perfedavg.algorithms.fed_recon import FedReconConfig
from tff_perfedavg.algorithms.meta_sgd import MetaSgdConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.local_update import local_update

MODEL = mlp((4,), 3, hidden=(5,))
SEED = 11
# From plenty of rows to fewer than one batch, and a single row.
SIZES = (30, 3, 12, 1)
CONFIGS = {
    "meta_sgd": MetaSgdConfig(0.3, 0.07, 3, 4, 4, 4),
    "fed_recon": FedReconConfig(0.3, 0.07, 3, 4, inner_steps=2),
    "random_support": PerFedAvgConfig(
        0.3, 0.07, 3, 6, 4, 4, hessian_batch="support", random_support=True
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("family") / "store", SIZES)


def plain_round(config, store):
    """What the server has after a round, by plain local updates."""
    algorithm = config.build()
    sent = algorithm.parameters(MODEL.init(SEED))

    def update(number):
        rows = store.adaptation(number)
        pair = tf.constant(batches.seed_pair(SEED))
        source = batches.batch_source(
            rows_of(rows.x, rows.y),
            batches.user_key(pair, tf.constant(0), tf.constant(number)),
            algorithm.num_steps,
            algorithm.batch_sizes,
            algorithm.random_roles,
        )
        start = [tf.constant(p) for p in sent]
        trained = local_update(MODEL.batch_loss, start, source, algorithm)
        return algorithm.update(start, trained.state)

    updates = [tf.function(update, autograph=False)(n) for n in range(len(SIZES))]
    mean = reference.mean(updates, [1] * len(updates))
    changed = reference.axpy(-1.0, mean, sent[: len(mean)])
    return [*changed, *sent[len(mean) :]]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param("meta_sgd", "vectorized", marks=pytest.mark.slow),
        pytest.param("fed_recon", "vectorized", marks=pytest.mark.slow),
        ("fed_recon", "users"),
        ("random_support", "vectorized"),
        pytest.param("random_support", "loop", marks=pytest.mark.slow),
    ],
)
def test_a_round_in_any_form_equals_plain_local_updates(tff, store, name, form):
    config = CONFIGS[name]
    client_data = (
        pfa.federated.StoreClientData(store, MODEL)
        if form == "users"
        else pfa.federated.BlockClientData(store, MODEL, 2, form)
    )
    process = pfa.build_process(MODEL, config, client_data=client_data, seed=SEED)
    clients = client_data.clients(np.arange(len(SIZES)))
    state = process.next(process.initialize(), clients).state
    found = process.get_model_weights(state)
    found = [*found.trainable, *found.non_trainable]
    expected = plain_round(config, store)
    # float32 sums in another order; rates are small changes from 0.
    assert relative_error(found[:4], expected[:4]) < 1e-6
    if name == "meta_sgd":
        assert len(found) == 5
        assert relative_error(found[4:], expected[4:]) < 1e-4


def test_a_fixed_head_gets_no_noise(tff):
    rng = np.random.default_rng(6)
    process = pfa.build_process(
        MODEL,
        FedBabuConfig(0.07, 2, 4),
        seed=SEED,
        model_aggregator=tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
            noise_multiplier=1.0, clients_per_round=2, clip=1.0
        ),
    )
    clients = [pfa.client_dataset(n, *toy_user(rng, 8)) for n in range(2)]
    state = process.next(process.initialize(), clients).state
    found, initial = process.get_model_weights(state), MODEL.init(SEED)
    for head, before in zip(found.non_trainable, initial[2:], strict=True):
        assert np.asarray(head).tobytes() == before.tobytes()
    assert relative_error(found.trainable, initial[:2]) > 0.1


def test_what_a_process_gives_is_evaluated(tff, store):
    config = CONFIGS["fed_recon"]
    data = pfa.federated.StoreClientData(store, MODEL)
    process = pfa.build_process(MODEL, config, client_data=data, seed=SEED)
    evaluate = pfa.build_personalization_eval(MODEL, config, client_data=data)
    weights = process.get_model_weights(process.initialize())
    (found,) = evaluate(weights, data.clients([0]))
    points = family_reference.user_steps(
        reference.TwoLayerNetwork(),
        [w.astype(np.float64) for w in MODEL.init(SEED)],
        store.adaptation(0),
        0.3,
        2,
        (2, 3),
    )
    held_out = store.evaluation(0)
    losses = [reference.TwoLayerNetwork().loss(w, *held_out) for w in points]
    assert np.allclose(found["loss"], losses, rtol=1e-4)


def test_the_server_holds_learned_rates_by_their_scale(tff):
    rng = np.random.default_rng(8)
    clients = [pfa.client_dataset(n, *toy_user(rng, 12)) for n in range(2)]
    moved = {}
    for scale in (1.0, 0.5):
        config = dataclasses.replace(CONFIGS["meta_sgd"], rates_scale=scale)
        process = pfa.build_process(MODEL, config, seed=SEED)
        state = process.next(process.initialize(), clients).state
        moved[scale] = np.asarray(process.get_model_weights(state).trainable[4])
    # The same rates, held as half as much.
    assert np.allclose(0.5 * moved[1.0], moved[0.5], rtol=1e-3)
    assert np.abs(moved[1.0]).max() > 0


def test_fed_recon_is_tffs_own(tff):
    rng = np.random.default_rng(7)
    parts = [toy_user(rng, 6) for _ in range(4)]
    initial = MODEL.init(SEED)
    config = FedReconConfig(0.3, 0.07, 3, 6, inner_steps=4)

    def model_fn():
        body = tf.keras.layers.Dense(
            5,
            "elu",
            kernel_initializer=tf.constant_initializer(initial[0]),
            bias_initializer=tf.constant_initializer(initial[1]),
        )
        head = tf.keras.layers.Dense(
            3,
            kernel_initializer=tf.constant_initializer(initial[2]),
            bias_initializer=tf.constant_initializer(initial[3]),
        )
        inputs = tf.keras.Input([4])
        spec = collections.OrderedDict(
            x=tf.TensorSpec([None, 4]), y=tf.TensorSpec([None], tf.int32)
        )
        return tff.learning.models.ReconstructionModel.from_keras_model_and_layers(
            tf.keras.Model(inputs, head(body(inputs))),
            global_layers=[body],
            local_layers=[head],
            input_spec=spec,
        )

    sgd = tff.learning.optimizers.build_sgdm
    process = tff.learning.algorithms.build_fed_recon(
        model_fn,
        loss_fn=lambda: tf.keras.losses.SparseCategoricalCrossentropy(True),
        server_optimizer_fn=sgd(1.0),
        client_optimizer_fn=sgd(0.07),
        reconstruction_optimizer_fn=sgd(0.3),
        dataset_split_fn=lambda rows: (rows.take(1).repeat(4), rows.skip(1)),
    )
    data = tf.data.Dataset.from_tensor_slices(
        collections.OrderedDict(
            x=np.stack([x for x, _ in parts]), y=np.stack([y for _, y in parts])
        )
    )
    state = process.next(process.initialize(), [data]).state
    theirs = process.get_model_weights(state).trainable

    support, *queries = parts
    algorithm = config.build()

    def ours():
        def draw(number):
            query = batch_of(
                tf.stack([x for x, _ in queries])[number],
                tf.stack([y for _, y in queries])[number],
            )
            return [batch_of(*support), query]

        start = [tf.constant(w) for w in initial]
        trained = local_update(MODEL.batch_loss, start, draw, algorithm)
        return trained.state[:2]

    assert relative_error(tf.function(ours, autograph=False)(), theirs) < 1e-6

"""Users of a store inside TFF: the same users by another way."""

import collections
import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import relative_error
from tests.needs import slow_but
from tff_perfedavg import errors
from tff_perfedavg.algorithms.fed_avg import FedAvgConfig
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.models.dense import mlp, mlp_regressor
from tff_perfedavg.optimization.config import AdaptationConfig

MODEL = mlp((4, 2), 3, hidden=(5,))
SCALE = [0.01, 0.02]
CONFIG = PerFedAvgConfig(0.3, 0.07, 3, 4, 5, 6, hessian_batch="own")
# Adaptation and evaluation rows; from plenty to a single row and none.
SIZES = [(30, 5), (3, 1), (12, 20), (1, 0), (0, 4)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)

    def rows(count):
        x = rng.integers(0, 256, [count, 4, 2]).astype(np.uint8)
        return Rows(x, rng.integers(0, 3, [count]).astype(np.int32))

    users = [User(rows(a), rows(e)) for a, e in SIZES]
    path = tmp_path_factory.mktemp("stores") / "store"
    return UserStore.write(path, users, Description("toy", 3, scale=SCALE))


def as_sequence(user, rows):
    from tff_perfedavg.federated.client_data import client_dataset

    x = rows.x.astype(np.float32) * np.array(SCALE, np.float32)
    return client_dataset(user, x, np.asarray(rows.y))


def train_two_rounds(build, config, client_data, clients):
    process = build(MODEL, config, client_data=client_data, seed=3)
    state, metrics = process.initialize(), None
    for _ in range(2):
        state, metrics = process.next(state, clients)
    return process.get_model_weights(state).trainable, metrics["client_work"]


@pytest.mark.parametrize(
    "config", [CONFIG, FedAvgConfig(0.07, 3, 4)], ids=["per_fed_avg", "fed_avg"]
)
def test_training_from_a_store_equals_training_from_sequences(tff, store, config):
    import tff_perfedavg as pfa
    from tff_perfedavg.federated.client_data import StoreClientData

    build = (
        pfa.build_per_fed_avg
        if isinstance(config, PerFedAvgConfig)
        else pfa.build_fed_avg
    )
    users = range(store.num_users)
    by_sequence, sequence_metrics = train_two_rounds(
        build, config, None, [as_sequence(u, store.adaptation(u)) for u in users]
    )
    by_store, metrics = train_two_rounds(
        build, config, StoreClientData(store, MODEL), [np.int32(u) for u in users]
    )
    assert relative_error(by_store, by_sequence) < 1e-6
    assert metrics["num_users_taken"] == 4
    for name, value in sequence_metrics.items():
        assert np.isclose(metrics[name], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def many_users(tmp_path_factory):
    """Seventy users of one to twenty rows, one of them without training rows."""
    rng = np.random.default_rng(1)

    def rows(count):
        x = rng.integers(0, 256, [count, 4, 2]).astype(np.uint8)
        return Rows(x, rng.integers(0, 3, [count]).astype(np.int32))

    users = [User(rows(n % 20 + 1), rows(3)) for n in range(69)]
    users.append(User(rows(0), rows(2)))
    path = tmp_path_factory.mktemp("stores") / "many"
    return UserStore.write(path, users, Description("toy", 3, scale=SCALE))


@pytest.mark.parametrize("layout", slow_but({"vectorized"}, ["loop", "vectorized"]))
def test_a_user_without_a_finite_update_does_not_spoil_its_block(tff, tmp_path, layout):
    import tff_perfedavg as pfa

    rng = np.random.default_rng(2)

    def user(scale):
        x = (scale * rng.normal(size=[8, 4, 2])).astype(np.float32)
        y = rng.integers(0, 3, [8], np.int32)
        return User(Rows(x, y), Rows(x[:0], y[:0]))

    everyone = [user(1e30 if number == 2 else 1.0) for number in range(5)]
    store = UserStore.write(tmp_path / "store", everyone, Description("toy", 3))
    form = pfa.federated.BlockClientData(store, MODEL, 5, layout)
    found, metrics = train_two_rounds(
        pfa.build_per_fed_avg, CONFIG, form, form.clients(range(5))
    )
    expected, _ = train_two_rounds(
        pfa.build_per_fed_avg, CONFIG, form, form.clients([0, 1, 3, 4])
    )
    assert relative_error(found, expected) < 1e-6
    assert (metrics["num_users_taken"], metrics["num_users_excluded"]) == (4, 1)


def one_round(client_data, users, config, weighting):
    """Weights and metrics of a round in which updates are clipped."""
    import tff_perfedavg as pfa

    build = (
        pfa.build_per_fed_avg
        if isinstance(config, PerFedAvgConfig)
        else pfa.build_fed_avg
    )
    process = build(
        MODEL,
        config,
        client_data=client_data,
        client_weighting=pfa.federated.ClientWeighting(weighting),
        update_transform=pfa.optimization.clip_update(0.1),
    )
    state, metrics = process.next(process.initialize(), client_data.clients(users))
    return process.get_model_weights(state).trainable, metrics["client_work"]


@pytest.fixture(scope="module")
def one_by_one(tff, many_users):
    """What `one_round` gives with a TFF client for each user, computed once."""
    from tff_perfedavg.federated.client_data import StoreClientData

    alone = StoreClientData(many_users, MODEL)
    users = range(many_users.num_users)
    return functools.cache(
        lambda config, weighting: one_round(alone, users, config, weighting)
    )


# A distance at which the difference of two gradients is not all rounding.
HESSIAN_FREE = dataclasses.replace(
    CONFIG, variant="hessian_free", hessian_free_delta=0.1
)
ALGORITHMS = {
    "exact": (CONFIG, "uniform"),
    "first_order": (dataclasses.replace(CONFIG, variant="first_order"), "num_examples"),
    "hessian_free": (HESSIAN_FREE, "uniform"),
    "fed_avg": (FedAvgConfig(0.07, 3, 4), "num_examples"),
}
# The others are slow: no layout asks which algorithm it lays out.
QUICK = {
    ("exact", "vectorized"),
    ("fed_avg", "loop"),
}


@pytest.mark.parametrize(
    ("config", "weighting", "layout"),
    [
        pytest.param(
            *of_algorithm,
            layout,
            id=f"{name}-{layout}",
            marks=() if (name, layout) in QUICK else pytest.mark.slow,
        )
        for name, of_algorithm in ALGORITHMS.items()
        for layout in ("loop", "vectorized")
    ],
)
def test_blocks_of_any_size_and_order_equal_users_one_by_one(
    tff, many_users, one_by_one, layout, weighting, config
):
    import tff_perfedavg as pfa

    shuffled = np.random.default_rng(0).permutation(many_users.num_users)
    expected, expected_metrics = one_by_one(config, weighting)
    assert expected_metrics["num_users_excluded"] == 1
    # The transform acts on each user's update: most exceed its norm.
    assert 0.05 < expected_metrics["update_norm"] < 0.1001
    for size in (1, 7, 64):
        blocks = pfa.federated.BlockClientData(many_users, MODEL, size, layout)
        found, metrics = one_round(blocks, shuffled, config, weighting)
        change = [f - w for f, w in zip(found, MODEL.init(0), strict=True)]
        wanted = [e - w for e, w in zip(expected, MODEL.init(0), strict=True)]
        assert relative_error(change, wanted) < 1e-5
        for name, value in expected_metrics.items():
            assert np.isclose(metrics[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_evaluating_blocks_equals_evaluating_users(tff, many_users, batch_size):
    import tff_perfedavg as pfa

    config = AdaptationConfig(0.3, num_steps=3, batch_size=batch_size)
    weights = tff.learning.models.ModelWeights(tuple(MODEL.init(0)), ())
    users = range(many_users.num_users)
    one, blocks = (
        pfa.build_personalization_eval(MODEL, config, client_data=data)(
            weights, data.clients(users)
        )
        for data in (
            pfa.federated.StoreClientData(many_users, MODEL),
            pfa.federated.BlockClientData(many_users, MODEL, 16),
        )
    )
    assert len(blocks) == 8
    for name in one[0]:
        alone = np.stack([result[name] for result in one])
        together = np.concatenate([result[name] for result in blocks])
        assert np.allclose(alone, together, rtol=1e-5, equal_nan=True)


def test_a_users_broken_rows_leave_out_that_user_alone(tff, tmp_path):
    import tff_perfedavg as pfa

    rng = np.random.default_rng(2)
    rows = [
        Rows(rng.random([6, 4, 2]), rng.integers(0, 3, [6], np.int32)) for _ in "abc"
    ]
    # Finite on disk, not so once squared and summed in float32.
    broken = Rows(np.full([6, 4, 2], 1e38), rows[0].y)
    users = [User(r, r) for r in (rows[0], broken, rows[1])]
    store = UserStore.write(tmp_path / "store", users, Description("toy", 3))
    found = []
    for client_data, chosen in (
        (pfa.federated.StoreClientData(store, MODEL), [0, 2]),
        (pfa.federated.BlockClientData(store, MODEL, 3, "loop"), [0, 1, 2]),
        (pfa.federated.BlockClientData(store, MODEL, 3, "vectorized"), [0, 1, 2]),
    ):
        process = pfa.build_per_fed_avg(MODEL, CONFIG, client_data=client_data)
        state, metrics = process.next(process.initialize(), client_data.clients(chosen))
        found.append(process.get_model_weights(state).trainable)
        assert metrics["client_work"]["num_users_excluded"] == len(chosen) - 2
    assert relative_error(found[1], found[0]) < 1e-6
    assert relative_error(found[2], found[0]) < 1e-6


def test_blocks_are_even_and_few_numbers_of_them_occur(tff, many_users):
    import tff_perfedavg as pfa

    blocks = pfa.federated.BlockClientData(many_users, MODEL, 8)
    for size in range(1, 71):
        clients = blocks.clients(range(size))
        assert np.array_equal(np.concatenate(clients), np.arange(size))
        lengths = [len(block) for block in clients]
        assert max(lengths) <= 8
        assert min(lengths) >= 1
        assert np.ptp(lengths) <= 1
        assert len(clients) in {1, 2, 4, 8, 16}


@pytest.mark.parametrize(
    ("model", "cohort_size", "form", "block_size", "expected"),
    [
        (MODEL, 1000, "auto", 0, (64, "vectorized")),
        (MODEL, 10, "auto", 0, (5, "vectorized")),
        (MODEL, 1000, "auto", 20, (20, "vectorized")),
        (mlp((4, 2), 3, hidden=(500,)), 1000, "auto", 0, (32, "loop")),
        (mlp((4, 2), 3, hidden=(500,)), 5, "auto", 0, (3, "loop")),
        (MODEL, 1000, "blocks_loop", 0, (32, "loop")),
        (MODEL, 1000, "users", 0, None),
    ],
)
def test_the_form_is_chosen_from_model_and_cohort(
    tff, many_users, model, cohort_size, form, block_size, expected
):
    import tff_perfedavg as pfa

    chosen = pfa.federated.choose_client_data(
        many_users, model, cohort_size, form, block_size
    )
    if expected is None:
        assert type(chosen) is pfa.federated.StoreClientData
    else:
        assert (chosen.block_size, chosen.layout) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "block_size is 0"), ((5, "spiral"), "layout is 'spiral'; known: loop")],
)
def test_bad_blocks_are_refused(tff, store, arguments, message):
    import tff_perfedavg as pfa

    with pytest.raises(errors.ConfigError, match=message):
        pfa.federated.BlockClientData(store, MODEL, *arguments)
    with pytest.raises(errors.ConfigError, match="norm is 0"):
        pfa.optimization.clip_update(0)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_evaluating_a_store_equals_evaluating_sequences(tff, store, batch_size):
    import tff_perfedavg as pfa
    from tff_perfedavg.federated.client_data import StoreClientData

    config = AdaptationConfig(0.3, num_steps=3, batch_size=batch_size)
    weights = tff.learning.models.ModelWeights(tuple(MODEL.init(0)), ())
    users = range(store.num_users)
    by_sequence = pfa.build_personalization_eval(MODEL, config)(
        weights,
        [
            collections.OrderedDict(
                adaptation=as_sequence(user, store.adaptation(user)),
                evaluation=as_sequence(user, store.evaluation(user)),
            )
            for user in users
        ],
    )
    by_store = pfa.build_personalization_eval(
        MODEL, config, client_data=StoreClientData(store, MODEL)
    )(weights, [np.int32(user) for user in users])
    for user, (ours, theirs) in enumerate(zip(by_store, by_sequence, strict=True)):
        assert ours["user"] == user
        for name in ours:
            assert np.allclose(ours[name], theirs[name], rtol=1e-5, equal_nan=True)


def test_a_regressor_trains_on_labels_that_are_no_classes(tff, tmp_path):
    import tff_perfedavg as pfa
    from tff_perfedavg.data.config import DataConfig
    from tff_perfedavg.experiments.assemble.prepare import prepare
    from tff_perfedavg.federated.client_data import BlockClientData, StoreClientData

    config = DataConfig.of("sinusoid", num_users=6, num_new_users=2)
    store = prepare(config, tmp_path / "store")
    model = mlp_regressor((1,))
    client_data = StoreClientData(store, model)
    process = pfa.build_per_fed_avg(
        model, PerFedAvgConfig(0.01, 0.01), client_data=client_data
    )
    clients = [np.int32(u) for u in range(6)]
    state, losses = process.initialize(), []
    for _ in range(8):
        state, metrics = process.next(state, clients)
        losses.append(metrics["client_work"]["query_loss"])
    assert losses[-1] < 0.9 * losses[0]
    for layout in ("loop", "vectorized"):
        blocks = BlockClientData(store, model, 4, layout)
        same = pfa.build_per_fed_avg(
            model, PerFedAvgConfig(0.01, 0.01), client_data=blocks
        )
        metrics = same.next(same.initialize(), blocks.clients(range(6))).metrics
        assert np.isclose(metrics["client_work"]["query_loss"], losses[0], rtol=1e-5)
    evaluate = pfa.build_personalization_eval(
        model, AdaptationConfig(0.01), client_data=client_data
    )
    result = evaluate(process.get_model_weights(state), clients)[0]
    x, y = store.evaluation(0)
    weights = process.get_model_weights(state).trainable
    expected = np.mean((model.apply(weights, x) - y) ** 2)
    assert np.isclose(result["loss"][0], expected, rtol=1e-5)
    assert np.isnan(result["accuracy"]).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp((8,), 3), r"features \(4, 2\), the model 'mlp' takes \(8,\)"),
        (mlp((4, 2), 4), "classes 3, the model 'mlp' takes 4"),
        (mlp_regressor((4, 2)), r"labels \(\), the model 'mlp_regressor' takes \(1,\)"),
    ],
)
def test_a_model_that_does_not_fit_the_store_is_refused(tff, store, model, message):
    from tff_perfedavg.federated.client_data import StoreClientData

    with pytest.raises(errors.DataError, match=message):
        StoreClientData(store, model)


def test_client_data_of_tff_becomes_a_store_and_a_store_client_data(tff, tmp_path):
    from tff_perfedavg.federated import tff_datasets

    rng = np.random.default_rng(0)
    clients = {
        name: collections.OrderedDict(
            pixels=rng.random([size, 3, 3]).astype(np.float32),
            label=rng.integers(0, 5, [size]).astype(np.int32),
        )
        for name, size in (("ann", 10), ("bob", 5), ("cy", 1))
    }
    data = tff.simulation.datasets.TestClientData(clients)
    users = tff_datasets.users_from_client_data(
        data, tff_datasets.image_rows("pixels", "label"), num_new_users=1
    )
    store = UserStore.write(tmp_path / "store", users, Description("toy", 5, 1 / 255))
    assert [store.user_name(u) for u in range(3)] == ["ann", "bob", "cy"]
    assert len(store.new_users) == 1
    sizes = [(len(store.adaptation(u).y), len(store.evaluation(u).y)) for u in range(3)]
    assert sizes == [(8, 2), (4, 1), (1, 0)]
    pixels = np.concatenate([store.adaptation(0).x, store.evaluation(0).x]) / 255
    assert np.abs(pixels - clients["ann"]["pixels"]).max() <= 0.5 / 255 + 1e-6

    back = tff_datasets.client_data_from_store(store)
    assert back.client_ids == ["0", "1", "2"]
    x, y = next(iter(back.create_tf_dataset_for_client("1").batch(100)))
    assert np.array_equal(x, store.adaptation(1).x)
    assert np.array_equal(y, store.adaptation(1).y)
    held_out = tff_datasets.client_data_from_store(store, evaluation=True)
    x, _ = next(iter(held_out.create_tf_dataset_for_client("0").batch(100)))
    assert np.array_equal(x, store.evaluation(0).x)

    @tff.tensorflow.computation(
        tff.SequenceType((tff.TensorType(np.uint8, [3, 3]), tff.TensorType(np.int32)))
    )
    def count(dataset):
        return dataset.reduce(0, lambda n, _: n + 1)

    assert count(back.create_tf_dataset_for_client("0")) == 8


def test_sqlite_client_data_becomes_a_store(tff, tmp_path):
    from tff_perfedavg.federated import tff_datasets

    path = str(tmp_path / "clients.sqlite")
    rng = np.random.default_rng(0)
    kept = {}

    def dataset_fn(client):
        size = 3 + int(client[-1])
        kept[client] = rng.integers(0, 256, [size, 4]).astype(np.uint8)
        return tf.data.Dataset.from_tensor_slices(
            collections.OrderedDict(
                image=kept[client], label=np.arange(size, dtype=np.int64) % 3
            )
        )

    tff.simulation.datasets.save_to_sql_client_data(
        client_ids=["c1", "c2"], dataset_fn=dataset_fn, database_filepath=path
    )
    data = tff.simulation.datasets.load_and_parse_sql_client_data(
        path,
        element_spec=collections.OrderedDict(
            image=tf.TensorSpec([4], tf.uint8), label=tf.TensorSpec([], tf.int64)
        ),
    )
    users = tff_datasets.users_from_client_data(
        data, tff_datasets.image_rows("image", "label"), test=data
    )
    store = UserStore.write(tmp_path / "store", users, Description("sql", 3))
    for number, client in enumerate(["c1", "c2"]):
        assert store.user_name(number) == client
        assert np.array_equal(store.adaptation(number).x, kept[client])
        assert np.array_equal(store.evaluation(number).x, kept[client])


def test_sentences_become_the_words_before_and_the_word_that_follows(tff):
    from tff_perfedavg.federated.tff_datasets import sentence_rows

    words = {b"a": 1, b"b": 2}
    sentences = np.array([b"a b c", b"a", b"a b a b a b", b""], object)
    rows = sentence_rows("tokens", words, context=3)({"tokens": sentences})
    assert rows.x.tolist() == [[0, 1, 2], [1, 2, 1]]
    assert rows.y.tolist() == [3, 2]


@pytest.mark.parametrize("name", ["femnist", "cifar100", "stackoverflow"])
def test_tff_data_sets_that_cannot_be_loaded_say_what_was_tried(
    tff, tmp_path, monkeypatch, name
):
    from tff_perfedavg.data.config import DataConfig
    from tff_perfedavg.experiments.assemble.prepare import prepare
    from tff_perfedavg.federated import tff_datasets

    def fail(*arguments, **named):
        raise OSError("no route to host")

    datasets = tff.simulation.datasets
    for module, function in (
        (datasets.emnist, "load_data"),
        (datasets.cifar100, "load_data"),
        (datasets.stackoverflow, "load_word_counts"),
    ):
        monkeypatch.setattr(module, function, fail)
    with pytest.raises(
        errors.DataError,
        match=rf"{name} was not found: TFF's loader .*no route to host",
    ):
        prepare(DataConfig.of(name), tmp_path / name, tmp_path)
    assert tff_datasets is not None

"""Users with labels of their own: who holds what, and what training draws of it."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import relative_error, toy_user
from tests.needs import needs_data
from tff_perfedavg import errors
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.data.own_labels import relabel
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.assemble.prepare import prepare
from tff_perfedavg.experiments.report.store_summary import summary
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.fresh_labels import with_fresh_labels

NAMES = [f"class {c}" for c in range(10)]
DESCRIPTION = Description("toy", 10, class_names=NAMES)


def config(count, *, seed=0, fresh=True, partition="iid"):
    dataset = "mnist_by_writer" if partition == "natural" else "digits"
    return DataConfig.of(
        dataset, partition=partition, own_labels=count, fresh_labels=fresh, seed=seed
    )


def users_of(held, num_new=0):
    """Users of the labels given by split, whose rows hold numbers of their own."""
    numbers = itertools.count()

    def rows(labels):
        return Rows(
            np.array([next(numbers) for _ in labels], np.int64)[:, np.newaxis],
            np.array(labels, np.int32),
        )

    return [
        User(rows(a), rows(e), number < num_new) for number, (a, e) in enumerate(held)
    ]


def owned(users, count, **options):
    description, make = relabel(DESCRIPTION, lambda: users, config(count, **options))
    return description, list(make())


def said(user):
    """All of a user, to be compared."""
    rows = [
        user.adaptation,
        user.evaluation,
        *([user.training] if user.training else []),
    ]
    return [(r.x.tolist(), r.y.tolist()) for r in rows], user.classes, user.is_new


LABELS = st.lists(st.integers(0, 9), max_size=20)


# How long a busy machine takes to make up users says nothing of them.
@given(
    extra=st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=4),
    count=st.integers(2, 4),
    seed=st.integers(0, 2**31),
    fresh=st.booleans(),
)
def test_every_user_has_labels_of_its_own_and_no_row_changes_its_split(
    extra, count, seed, fresh
):
    users = users_of([([1, 3, 5, 8, *a], [8, 5, 3, 1, *e]) for a, e in extra], 1)
    description, found = owned(users, count, seed=seed, fresh=fresh)
    assert description.num_classes == count
    assert description.own_labels
    assert len(found) == len(users)
    again = owned(users, count, seed=seed, fresh=fresh)[1]
    for number, (before, after) in enumerate(zip(users, found, strict=True)):
        means = dict(enumerate(after.classes))
        assert len({*means.values()}) == count
        for split in ("adaptation", "evaluation"):
            rows, old = getattr(after, split), getattr(before, split)
            assert {*rows.y} == {*range(count)}
            # Exactly the rows of these classes, each still what it was.
            was = dict(zip(old.x[:, 0].tolist(), old.y.tolist(), strict=True))
            assert [was[n] for n in rows.x[:, 0].tolist()] == [means[y] for y in rows.y]
            assert len(rows.y) == np.isin(old.y, after.classes).sum()
        if not fresh or before.is_new:
            assert after.training is None
        else:
            old = before.adaptation
            others = ~np.isin(old.y, after.classes)
            assert after.training.x.tolist() == old.x[others].tolist()
            # One label for one class, behind those of the user's own.
            pairs = {*zip(old.y[others].tolist(), after.training.y.tolist())}  # noqa: B905
            assert sorted(y for _, y in pairs) == [*range(count, count + len(pairs))]
        assert said(after) == said(again[number])


def test_every_order_of_every_choice_is_equally_likely():
    users = users_of([([4, 6, 7], [7, 6, 4])] * 1200)
    found = owned(users, 2)[1]
    counts = collections.Counter(user.classes for user in found)
    assert len(counts) == 6
    assert scipy.stats.chisquare([*counts.values()]).pvalue > 0.001
    # Of one seed; another gives others.
    assert [u.classes for u in owned(users, 2, seed=1)[1]] != [u.classes for u in found]


def test_more_labels_than_users_hold_are_refused_with_the_most_that_are_feasible():
    # The second user cannot be judged on class 9.
    users = users_of([([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 9], [1, 2, 4])])
    with pytest.raises(
        errors.DataError,
        match=r"own_labels is 3, but user 1 has only 2 .* feasible own_labels is 2\.",
    ):
        owned(users, 3)


def test_natural_users_of_too_few_classes_are_left_out_and_counted():
    users = users_of([([1, 2, 3], [1, 2, 3]), ([1, 2], [1, 2]), ([4, 5, 6], [6, 5, 4])])
    description, found = owned(users, 3, partition="natural")
    assert description.num_left_out == 1
    assert [sorted(user.classes) for user in found] == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(errors.DataError, match=r"no user who trains has more than 3"):
        owned(users, 4, partition="natural")


@pytest.mark.parametrize(
    ("dataset", "fields", "message"),
    [
        ("digits", {"own_labels": 1}, "own_labels is 1; .* at least 2, or 0"),
        ("digits", {"own_labels": -3}, "own_labels is -3"),
        ("digits", {"fresh_labels": False}, "fresh_labels is False, .* own_labels"),
        ("sinusoid", {"own_labels": 2}, "labels of sinusoid are numbers"),
        ("omniglot", {"own_labels": 6}, "largest feasible is 5"),
        ("digits", {"turned_classes": False}, "partition paper turns none"),
        ("digits", {"partition": "tasks"}, "classes of digits are of no families"),
    ],
)
def test_settings_that_make_no_sense_are_refused(dataset, fields, message):
    with pytest.raises(errors.ConfigError, match=message):
        DataConfig.of(dataset, **fields)


def test_a_store_keeps_what_labels_mean_and_what_training_draws_from(tmp_path):
    store = prepare(config(4), tmp_path / "store")
    assert store.description.num_classes == 4
    assert store.has_training_rows
    digits = prepare(DataConfig.of("digits", partition="iid"), tmp_path / "digits")
    for user in range(store.num_users):
        names = store.label_names(user)
        assert len({*names} & {*"0123456789"}) == 4
        trained = store.training(user)
        own = store.adaptation(user)
        if user in store.new_users:
            assert trained.y.tolist() == own.y.tolist()
        else:
            assert len(trained.y) > len(own.y)
            assert {*trained.y} == {*range(len({*trained.y}))}
        # Whoever's row it is, it is the same digit.
        label_of = {
            x.tobytes(): y for x, y in zip(*digits.adaptation(user), strict=True)
        }
        for x, y in zip(*own, strict=True):
            assert names[y] == str(label_of.get(x.tobytes(), names[y]))
    told = summary(store)
    assert "each user's own, for example of user 0" in told
    assert "4 of a user's" in told


@pytest.mark.parametrize(
    ("dataset", "fields", "count"),
    [
        ("digits", {"partition": "paper", "a": 30}, 2),
        ("digits", {"partition": "k_classes", "classes_per_user": 4}, 3),
        ("digits", {"partition": "dirichlet", "concentration": 100.0}, 4),
        ("digits", {"partition": "quantity_skew", "concentration": 10.0}, 4),
        ("synthetic", {}, 2),
        pytest.param("uci_har", {}, 5, marks=needs_data),
        pytest.param("mnist_by_writer", {}, 5, marks=needs_data),
    ],
)
def test_of_any_partition_users_have_labels_of_their_own(
    tmp_path, dataset, fields, count
):
    if dataset == "digits":
        fields = {**fields, "num_users": 8, "num_new_users": 2}
    plain = DataConfig.of(dataset, **fields)
    users = prepare(plain, tmp_path / "plain")
    known = users.description.class_names or [*map(str, range(10))]
    means = {x: known[y] for x, y in all_rows(users)}
    owning = dataclasses.replace(plain, own_labels=count, fresh_labels=False)
    store = prepare(owning, tmp_path / "own")
    assert store.description.num_classes == count
    left_out = store.description.num_left_out
    assert store.num_users + left_out == users.num_users
    told = f"{left_out} users, who hold fewer classes"
    assert (told in summary(store)) == (left_out > 0)
    orders = set()
    for user in range(store.num_users):
        names = store.label_names(user)
        assert len({*names}) == count
        orders.add(tuple(names))
        for split in (store.adaptation(user), store.evaluation(user)):
            assert {*split.y.tolist()} == {*range(count)}
            for x, y in zip(*split, strict=True):
                assert means[x.tobytes()] == names[y]
    assert len(orders) > 1
    # No row is in both splits, or of two users.
    rows = [x for x, _ in all_rows(store)]
    assert len({*rows}) == len(rows)


def all_rows(store):
    """Bytes and label of every row of a store."""
    for user in range(store.num_users):
        for split in (store.adaptation(user), store.evaluation(user)):
            for x, y in zip(*split, strict=True):
                yield x.tobytes(), int(y)


def test_a_store_of_fixed_orders_has_no_rows_for_training_alone(tmp_path):
    store = prepare(config(4, fresh=False), tmp_path / "store")
    assert not store.has_training_rows
    assert not store.description.fresh_labels
    assert store.training(0).y.tolist() == store.adaptation(0).y.tolist()


def test_users_that_contradict_their_store_are_refused(tmp_path):
    (user,) = users_of([([0, 1], [1, 0])])
    plain = Description("toy", 2)
    with pytest.raises(errors.DataError, match="rows for training alone"):
        UserStore.write(
            tmp_path / "a", [user._replace(training=user.adaptation)], plain
        )
    own = Description("toy", 2, own_labels=True, source_classes=NAMES)
    with pytest.raises(errors.DataError, match=r"has the classes \(3,\); own_labels"):
        UserStore.write(tmp_path / "b", [user._replace(classes=(3,))], own)
    store = UserStore.write(tmp_path / "c", [user._replace(classes=(3, 7))], own)
    assert store.label_names(0) == ["class 3", "class 7"]
    with pytest.raises(errors.DataError, match="fresh_labels is set, but num_classes"):
        Description("toy", None, fresh_labels=True)


def test_rows_for_training_that_are_another_users_are_found(tmp_path):
    store = prepare(config(4), tmp_path / "store")
    first = np.array(store.first_rows)
    assert first[1] > 0
    first[1] -= 1
    path = store.path / "training.bin"
    path.write_bytes(first.tobytes())
    with pytest.raises(errors.DataError, match=r"damaged: user 1 has the bounds"):
        UserStore.open(store.path)
    path.unlink()
    with pytest.raises(errors.DataError, match=r"training\.bin"):
        UserStore.open(store.path)


# ------------------------------------------------------------------ fresh labels


def key_of(round_number, user, seed=5):
    pair = tf.constant(batches.seed_pair(seed))
    return batches.user_key(pair, tf.constant(round_number), tf.constant(user))


def rows_with(labels):
    """Rows whose feature is the row's number."""
    numbers = tf.range(len(labels), dtype=tf.int32)
    return batches.UserRows.of(numbers, tf.constant(labels, tf.int32))


@tf.function(
    input_signature=[tf.TensorSpec([None], tf.int32)]
    + [tf.TensorSpec([], tf.int32)] * 3
)
def _drawn(labels, count, round_number, user):
    rows = batches.UserRows.of(tf.range(tf.size(labels)), labels)
    key = batches.user_key(tf.constant(batches.seed_pair(5)), round_number, user)
    batch = batches.all_rows(with_fresh_labels(rows, key, count))
    return batch.x, batch.y


def drawn(labels, count, round_number=0, user=0):
    """The rows that a round draws, by their numbers, and their labels."""
    found = _drawn(*map(tf.constant, (labels, count, round_number, user)))
    return tuple(array.numpy() for array in found)


@given(
    labels=st.lists(st.integers(0, 7), min_size=1, max_size=40),
    count=st.integers(2, 6),
    round_number=st.integers(0, 1000),
)
def test_a_draw_is_a_task_of_some_of_the_users_classes(labels, count, round_number):
    rows, fresh = drawn(labels, count, round_number)
    classes = np.array(labels)[rows]
    pairs = {*zip(classes.tolist(), fresh.tolist(), strict=True)}
    held = len({*labels})
    # One label for one class, as many as there are labels or classes held.
    assert len(pairs) == min(held, count)
    assert len({c for c, _ in pairs}) == len({y for _, y in pairs}) == len(pairs)
    assert {*fresh} <= {*range(count)}
    # Every row of the classes taken, in its order, once.
    assert rows.tolist() == np.flatnonzero(np.isin(labels, [*{*classes}])).tolist()
    again = drawn(labels, count, round_number)
    assert fresh.tolist() == again[1].tolist()


def test_every_task_is_equally_likely_in_rounds_and_over_users():
    labels = [0, 1, 2]
    for users, rounds in ((1, 600), (600, 1)):
        counts = collections.Counter()
        for user, round_number in itertools.product(range(users), range(rounds)):
            rows, fresh = drawn(labels, 2, round_number, user)
            counts[tuple(rows[np.argsort(fresh)].tolist())] += 1
        assert len(counts) == 6
        assert scipy.stats.chisquare([*counts.values()]).pvalue > 0.001


def test_a_user_of_few_classes_has_labels_from_all():
    seen = {int(drawn([2, 2], 3, r)[1][0]) for r in range(40)}
    assert seen == {0, 1, 2}


@settings(max_examples=25)
@given(
    held=st.lists(
        st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=4
    ).filter(lambda held: any(held)),
    count=st.integers(2, 4),
)
def test_several_users_draw_what_each_draws_by_itself(held, count):
    flat = tf.constant([*itertools.chain(*held), 0], tf.int32)
    sizes = np.array([len(labels) for labels in held], np.int32)
    starts = tf.constant(np.cumsum([0, *sizes[:-1]]), tf.int32)
    last = tf.size(flat) - 1
    several = batches.UserRows(
        tf.constant(sizes),
        lambda numbers: tf.minimum(starts[:, tf.newaxis] + numbers, last),
        lambda places: places,
        lambda places: tf.gather(flat, places),
    )
    users = np.arange(len(held), dtype=np.int32)
    found = with_fresh_labels(several, key_of(7, users), count)
    source = batches.batch_source(found, key_of(7, users), 2, [3, 2])
    for step in (0, 1):
        together = source(tf.constant(step))
        for user, labels in enumerate(held):
            if not labels:
                assert found.num_rows[user] == 0
                continue
            alone = with_fresh_labels(rows_with(labels), key_of(7, user), count)
            assert found.num_rows[user] == alone.num_rows
            expected = batches.batch_source(alone, key_of(7, user), 2, [3, 2])(
                tf.constant(step)
            )
            for batch, of_all in zip(expected, together, strict=True):
                np.testing.assert_array_equal(of_all.mask[user], batch.mask)
                counts = batch.mask.numpy() > 0
                np.testing.assert_array_equal(
                    of_all.y[user].numpy()[counts], batch.y.numpy()[counts]
                )
                np.testing.assert_array_equal(
                    of_all.x[user].numpy()[counts] - starts[user].numpy(),
                    batch.x.numpy()[counts],
                )


def test_all_steps_and_roles_of_a_round_speak_of_one_task():
    labels = np.repeat(np.arange(6), 5)
    fresh = with_fresh_labels(rows_with(labels), key_of(3, 1), 4)
    source = batches.batch_source(fresh, key_of(3, 1), 5, [6, 6, 6])
    pairs = set()
    for step in range(5):
        for batch in source(tf.constant(step)):
            classes = labels[batch.x.numpy()].tolist()
            pairs |= {*zip(classes, batch.y.numpy().tolist(), strict=True)}
    assert len(pairs) == 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    users = [
        User(*(Rows(*toy_user(rng, size, 4, classes)) for size in (40, 9)))
        for classes in (3, 5, 7, 4)
    ]
    description, make = relabel(DESCRIPTION, lambda: users, config(3))
    path = tmp_path_factory.mktemp("own") / "store"
    return UserStore.write(path, make(), description)


@pytest.mark.parametrize("variant", ["first_order", "exact"])
def test_all_forms_of_client_data_train_on_the_same_tasks(tff, store, variant):
    import tff_perfedavg as pfa
    from tff_perfedavg.federated.client_data import SequenceClientData

    model = pfa.models.logistic_regression((4,), 3)
    algorithm = pfa.PerFedAvgConfig(0.3, 0.1, 2, 5, 5, variant=variant)
    users = [*range(store.num_users)]
    sequences = [pfa.client_dataset(u, *store.training(u)) for u in users]
    forms = {
        "users": (pfa.federated.StoreClientData(store, model), None),
        "loop": (pfa.federated.BlockClientData(store, model, 3), None),
        "vectorized": (
            pfa.federated.BlockClientData(store, model, 3, "vectorized"),
            None,
        ),
        "sequences": (SequenceClientData(model, fresh_labels=3), sequences),
        "not fresh": (SequenceClientData(model), None),
    }
    forms["not fresh"] = (
        forms["not fresh"][0],
        [pfa.client_dataset(u, *store.adaptation(u)) for u in users],
    )
    weights = {}
    for name, (client_data, values) in forms.items():
        process = pfa.build_process(model, algorithm, client_data=client_data, seed=2)
        state = process.initialize()
        for _ in range(2):
            state = process.next(state, values or client_data.clients(users)).state
        weights[name] = process.get_model_weights(state).trainable
    for name in ("loop", "vectorized", "sequences"):
        assert relative_error(weights[name], weights["users"]) < 1e-6
    assert relative_error(weights["not fresh"], weights["users"]) > 1e-3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_perfedavg import errors
from tff_perfedavg.data import partition
from tff_perfedavg.data.division import choose_fold
from tff_perfedavg.data.partition import paper_partition, split_by_class


def labels_of(per_class, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(10), per_class))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 50), st.integers(0, 48), st.integers(0, 2**32))
def test_folds_are_equal_parts_of_the_users_and_another_seeds_are_others(
    num_users, fewer, seed
):
    count = max(2, num_users - fewer)
    numbers = range(1, count + 1)
    folds = [choose_fold(num_users, k, count, seed) for k in numbers]
    assert (np.sum(folds, axis=0) == 1).all()
    assert np.ptp([fold.sum() for fold in folds]) <= 1
    if num_users > 20 and count < 10:
        other = [
            choose_fold(num_users, k, count, seed + 1) for k in range(1, count + 1)
        ]
        assert not np.array_equal(folds, other)


@settings(max_examples=60, deadline=None)
@given(
    half_users=st.integers(1, 15),
    half_a=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_paper_partition_keeps_the_rule(half_users, half_a, seed):
    num_users, a = 2 * half_users, 2 * half_a
    labels = labels_of(240)
    users = paper_partition(labels, a, num_users, seed)
    assert len(users) == num_users
    everything = np.concatenate(users)
    assert len(set(everything)) == len(everything)
    counts = np.array([np.bincount(labels[rows], minlength=10) for rows in users])
    assert (counts[:half_users, :5] == a).all()
    assert (counts[:half_users, 5:] == 0).all()
    for of_user in counts[half_users:]:
        assert sorted(of_user[:5]) == [0, 0, 0, 0, a // 2]
        assert sorted(of_user[5:]) == [0, 0, 0, 0, 2 * a]
    # The classes take turns.
    spread = np.count_nonzero(counts[half_users:], axis=0)
    assert np.ptp(spread[:5]) <= 1
    assert np.ptp(spread[5:]) <= 1
    again = paper_partition(labels, a, num_users, seed)
    assert all(np.array_equal(x, y) for x, y in zip(users, again, strict=True))


def test_another_seed_gives_other_rows():
    labels = labels_of(100)
    first, second = (paper_partition(labels, 4, 10, seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


@settings(max_examples=40, deadline=None)
@given(
    per_class=st.lists(st.integers(1, 60), min_size=10, max_size=10),
    half_users=st.integers(1, 8),
    seed=st.integers(0, 100),
)
def test_the_largest_feasible_a_is_feasible_and_the_next_is_not(
    per_class, half_users, seed
):
    labels = np.repeat(np.arange(10), per_class)
    num_users = 2 * half_users
    with pytest.raises(errors.DataError, match="largest feasible a is") as refused:
        paper_partition(labels, 1000, num_users, seed)
    largest = int(
        str(refused.value).split("largest feasible a is ")[1].split()[0][:-1]
        if "(none)" not in str(refused.value)
        else 0
    )
    if largest:
        paper_partition(labels, largest, num_users, seed)
    with pytest.raises(errors.DataError, match="largest feasible"):
        paper_partition(labels, largest + 2, num_users, seed)


@pytest.mark.parametrize(
    ("a", "num_users", "message"),
    [(3, 10, "a is 3"), (0, 10, "a is 0"), (4, 9, "num_users is 9")],
)
def test_odd_requests_are_refused(a, num_users, message):
    with pytest.raises(errors.DataError, match=message):
        paper_partition(labels_of(100), a, num_users, 0)


def test_other_than_ten_classes_are_refused():
    with pytest.raises(errors.DataError, match="9 distinct values"):
        paper_partition(np.repeat(np.arange(9), 50), 2, 2, 0)


def test_a_class_that_cannot_be_cut_is_refused():
    labels = np.array([0, 0, 0, 1, 1])
    with pytest.raises(errors.DataError, match="3 rows of class 0"):
        split_by_class(labels, np.arange(5), 2, 1)


def test_diff_hetero_leaves_the_second_half_one_class():
    labels = labels_of(100)
    users = paper_partition(labels, 4, 10, 0, diff_hetero=True)
    same = paper_partition(labels, 4, 10, 0)
    for number, (rows, with_both) in enumerate(zip(users, same, strict=True)):
        counts = np.bincount(labels[rows], minlength=10)
        if number < 5:
            assert counts.tolist() == [4] * 5 + [0] * 5
        else:
            assert sorted(counts) == [0] * 9 + [8]
            assert counts.argmax() == np.bincount(labels[with_both])[5:].argmax() + 5


def test_a_users_classes_do_not_depend_on_the_rows():
    train, test = labels_of(300, seed=1), labels_of(80, seed=2)
    for first, second in zip(
        paper_partition(train, 20, 20, 7), paper_partition(test, 4, 20, 7), strict=True
    ):
        assert set(train[first]) == set(test[second])


def assert_no_row_twice(users, num_rows):
    everything = np.concatenate(users)
    assert len(np.unique(everything)) == len(everything)
    assert everything.size == 0 or everything.max() < num_rows


def assert_repeats(make, *arguments, seed):
    first, again, other = make(*arguments, seed), make(*arguments, seed), None
    other = make(*arguments, seed + 1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    return first, other


@settings(max_examples=60, deadline=None)
@given(
    concentration=st.floats(1e-4, 100),
    rows_per_user=st.integers(1, 40),
    num_users=st.integers(1, 25),
    seed=st.integers(0, 1000),
)
def test_dirichlet_gives_every_user_its_number_of_rows(
    concentration, rows_per_user, num_users, seed
):
    labels = labels_of(100)
    arguments = (labels, concentration, rows_per_user, num_users)
    users, _ = assert_repeats(partition.dirichlet_partition, *arguments, seed=seed)
    assert [len(rows) for rows in users] == [rows_per_user] * num_users
    assert_no_row_twice(users, len(labels))


def test_dirichlet_goes_from_one_class_to_all_alike():
    labels = labels_of(1000)
    spread = []
    for concentration in (1e-3, 1.0, 1e3):
        users = partition.dirichlet_partition(labels, concentration, 50, 40, 0)
        shares = np.array([np.bincount(labels[r], minlength=10) for r in users]) / 50
        spread.append(np.abs(shares - 0.1).sum(1).mean() / 2)
    assert spread[0] > 0.85
    assert 0.3 < spread[1] < 0.8
    assert spread[2] < 0.2


@settings(max_examples=60, deadline=None)
@given(
    classes_per_user=st.integers(1, 10),
    num_users=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_k_classes_gives_every_user_exactly_k(classes_per_user, num_users, seed):
    labels = labels_of(60)
    arguments = (labels, classes_per_user, num_users)
    users, _ = assert_repeats(partition.k_classes_partition, *arguments, seed=seed)
    assert_no_row_twice(users, len(labels))
    counts = np.array([np.bincount(labels[r], minlength=10) for r in users])
    assert ((counts > 0).sum(1) == classes_per_user).all()
    serves = (counts > 0).sum(0)
    assert np.ptp(serves) <= 1
    for column in range(10):
        held = counts[counts[:, column] > 0, column]
        if held.size:
            assert np.ptp(held) <= 1
            assert held.sum() == 60


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 500), data=st.data(), seed=st.integers(0, 1000))
def test_iid_and_quantity_skew_give_every_row_once(num_rows, data, seed):
    num_users = data.draw(st.integers(1, num_rows))
    even, _ = assert_repeats(partition.iid_partition, num_rows, num_users, seed=seed)
    concentration = data.draw(st.floats(1e-3, 100))
    skewed, _ = assert_repeats(
        partition.quantity_skew_partition, num_rows, concentration, num_users, seed=seed
    )
    for users in (even, skewed):
        assert len(users) == num_users
        assert sorted(np.concatenate(users)) == list(range(num_rows))
        assert min(len(rows) for rows in users) >= 1
    assert np.ptp([len(rows) for rows in even]) <= 1


def test_quantity_skew_is_skewed():
    def largest(concentration):
        users = partition.quantity_skew_partition(1000, concentration, 20, 0)
        return max(len(rows) for rows in users)

    assert largest(0.05) > 300
    assert largest(1000) < 60


@settings(max_examples=40, deadline=None)
@given(keys=st.lists(st.sampled_from("abcde"), min_size=1, max_size=60))
def test_natural_gives_each_key_its_rows(keys):
    users = partition.natural_partition(np.array(keys))
    assert list(users) == sorted(set(keys))
    for key, rows in users.items():
        assert rows.tolist() == [i for i, k in enumerate(keys) if k == key]


@settings(max_examples=80, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
    by_label=st.booleans(),
)
def test_split_by_group_never_separates_a_group(groups, fraction, seed, by_label):
    groups = np.array(groups)
    labels = groups % 3 if by_label else None
    rows = np.arange(len(groups))
    first, second = partition.split_by_group(
        rows, groups, fraction, seed, labels=labels
    )
    assert sorted([*first, *second]) == rows.tolist()
    assert not set(groups[first]) & set(groups[second])
    assert len(first)
    kinds = [groups] if labels is None else [groups[labels == v] for v in set(labels)]
    for of_kind in kinds:
        available = len(set(of_kind))
        wanted = min(max(1, round(available * fraction)), available - 1)
        assert len(set(of_kind) & set(groups[second])) == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: partition.dirichlet_partition(labels_of(10), 1.0, 60, 2, 0),
            "largest feasible rows_per_user is 50",
        ),
        (
            lambda: partition.dirichlet_partition(labels_of(10), 0.0, 5, 2, 0),
            "concentration is 0.0",
        ),
        (
            lambda: partition.dirichlet_partition(labels_of(10), 1.0, 0, 2, 0),
            "rows_per_user is 0",
        ),
        (
            lambda: partition.k_classes_partition(labels_of(10), 11, 2, 0),
            "classes_per_user is 11; it must be from 1 to 10",
        ),
        (
            lambda: partition.k_classes_partition(labels_of(3), 10, 4, 0),
            "class 0 has 3 rows for 4 users",
        ),
        (lambda: partition.iid_partition(3, 4, 0), "3 rows are not one for each of 4"),
        (lambda: partition.iid_partition(3, 0, 0), "users is 0"),
        (
            lambda: partition.quantity_skew_partition(3, 1.0, 4, 0),
            "3 rows are not one for each of 4",
        ),
        (
            lambda: partition.quantity_skew_partition(9, -1.0, 4, 0),
            "concentration is -1.0",
        ),
        *[
            (
                lambda c=tiny: partition.dirichlet_partition(labels_of(10), c, 5, 2, 0),
                f"concentration is {tiny}, with which .*; take one between",
            )
            for tiny in (1e-308, 1e-320, 5e-324)
        ],
        (
            lambda: partition.quantity_skew_partition(9, 1e-320, 4, 0),
            "concentration is 1e-320, with which .*; take one between",
        ),
        (
            lambda: partition.split_by_group(np.arange(3), np.arange(3), 1.0, 0),
            "evaluation_fraction is 1.0",
        ),
    ],
)
def test_partitions_refuse_what_cannot_be_done(make, message):
    with pytest.raises(errors.DataError, match=message):
        make()


@pytest.mark.parametrize(
    "divide",
    [
        lambda labels, users: paper_partition(labels, 2, users, 0),
        lambda labels, users: partition.k_classes_partition(labels, 2, users, 0),
        lambda labels, users: partition.dirichlet_partition(labels, 1, 1, users, 0),
        lambda labels, users: partition.iid_partition(len(labels), users, 0),
        lambda labels, users: partition.quantity_skew_partition(100, 1, users, 0),
    ],
)
def test_more_users_than_rows_are_refused_before_a_table_of_them_is_made(divide):
    # A table of so many would not fit into memory.
    with pytest.raises(errors.DataError, match="use fewer users"):
        divide(labels_of(10), 2 * 10**12)

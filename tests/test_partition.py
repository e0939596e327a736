import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_perfedavg import errors
from tff_perfedavg.data import catalog
from tff_perfedavg.data.partition import paper_partition, split_by_class
from tff_perfedavg.data.population import Population, Rows


def labels_of(per_class, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(10), per_class))


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


def test_digits_gives_no_row_twice_and_keeps_the_rule_in_both_splits():
    population = catalog.digits(a=8, evaluation_a=4)
    seen = set()
    total = 0
    for split, a in ((population.adaptation, 8), (population.evaluation, 4)):
        for user, rows in enumerate(split):
            seen |= {(x.tobytes(), y) for x, y in zip(rows.x, rows.y, strict=True)}
            total += len(rows.y)
            counts = np.bincount(rows.y, minlength=10)
            if user < 13:
                assert counts.tolist() == [a] * 5 + [0] * 5
            else:
                assert sorted(counts) == [0] * 8 + [a // 2, 2 * a]
    # No two images of the data set are equal, so rows are told apart by content.
    assert len(seen) == total == 13 * 12 * 5 + 13 * 30
    kinds = [np.count_nonzero(population.new_users < 13), len(population.new_users)]
    assert kinds == [3, 6]
    everyone = np.concatenate([population.training_users, population.new_users])
    assert sorted(everyone) == list(range(26))


def test_digits_is_scaled_and_repeats():
    first, second = catalog.digits(seed=3), catalog.digits(seed=3)
    assert first.adaptation[0].x.max() == 1.0
    assert first.adaptation[0].x.dtype == np.float32
    for a, b in zip(first.adaptation, second.adaptation, strict=True):
        assert np.array_equal(a.x, b.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_new_users": 5}, "num_new_users is 5"),
        ({"num_training_users": 21, "num_new_users": 5}, "num_training_users is 21"),
        ({"a": 40}, "largest feasible a is 12"),
    ],
)
def test_digits_refuses_what_the_rule_cannot_do(arguments, message):
    with pytest.raises(errors.DataError, match=message):
        catalog.digits(**arguments)


def population_of(x, y):
    rows = Rows(np.asarray(x, np.float32), np.asarray(y, np.int32))
    return Population("toy", [rows], [rows], np.array([0]), np.array([]), 3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0], [2.0]], [0], "user 0 has 2 rows of features and 1 labels"),
        ([[np.nan]], [0], "user 0 has features that are not finite"),
        ([[1.0]], [3], "user 0 has a label outside 0 to 2"),
        ([[1.0]], [-1], "user 0 has a label outside 0 to 2"),
    ],
)
def test_bad_rows_are_refused(x, y, message):
    with pytest.raises(errors.DataError, match=message):
        population_of(x, y)


def test_a_user_both_seen_and_new_is_refused():
    rows = Rows(np.zeros([1, 2], np.float32), np.zeros([1], np.int32))
    with pytest.raises(errors.DataError, match="user 1 is both"):
        Population("toy", [rows] * 2, [rows] * 2, np.array([0, 1]), np.array([1]), 3)

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests import reference
from tests.helpers import rows_of
from tff_perfedavg import errors
from tff_perfedavg.algorithms.per_fed_avg import PerFedAvgConfig
from tff_perfedavg.optimization import batches

STEPS = 20


@functools.cache
def _traced(sizes):
    number = tf.TensorSpec([], tf.int32)

    @tf.function(
        input_signature=[number, tf.TensorSpec([2], tf.int32), number, number, number]
    )
    def compute(num_rows, seed, round_number, user, step):
        numbers = tf.range(num_rows)
        rows = rows_of(tf.cast(numbers, tf.float32), numbers)
        key = batches.user_key(seed, round_number, user)
        return batches.batch_source(rows, key, STEPS, sizes)(step)

    return compute


def draw(num_rows, sizes, *, seed=0, round_number=0, user=0, step=0):
    """Row numbers and mask of each role's batch."""
    pair = tf.constant(batches.seed_pair(seed))
    drawn = _traced(tuple(sizes))(num_rows, pair, round_number, user, step)
    return [(b.y.numpy(), b.mask.numpy()) for b in drawn]


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    seed=st.integers(0, 2**62 - 1),
)
def test_batches_are_distinct_rows_and_disjoint_from_a_row_a_role_on(
    num_rows, sizes, seed
):
    drawn = draw(num_rows, sizes, seed=seed)
    counted = [rows[mask == 1] for rows, mask in drawn]
    for size, (rows, mask), kept in zip(sizes, drawn, counted, strict=True):
        assert len(rows) == len(mask) == size
        assert 1 <= len(kept) == len(set(kept)) <= min(size, num_rows)
        assert rows.min() >= 0
        assert rows.max() < num_rows
        if sum(sizes) <= num_rows:
            assert len(kept) == size
        elif len(set(sizes)) == 1:
            assert len(kept) == max(1, num_rows // len(sizes))
    if len(sizes) <= num_rows:
        everything = np.concatenate(counted)
        assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("changed", ["seed", "round_number", "user", "step"])
def test_each_part_of_the_key_changes_the_draw_and_repeating_it_does_not(changed):
    first = draw(1000, [10, 10, 10])
    again = draw(1000, [10, 10, 10])
    other = draw(1000, [10, 10, 10], **{changed: 1})
    for (a, _), (b, _), (c, _) in zip(first, again, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_a_role_draws_the_same_rows_whether_or_not_another_follows():
    two, three = draw(50, [8, 8]), draw(50, [8, 8, 8])
    for (a, _), (b, _) in zip(two, three[:2], strict=True):
        assert np.array_equal(a, b)


def test_a_user_with_rows_enough_draws_consecutive_slices_of_its_shuffle():
    num_rows, sizes = 24, [8, 8, 8]
    pair = tf.constant(batches.seed_pair(7))
    key = batches.user_key(pair, tf.constant(3), tf.constant(5))
    shuffles = batches.draw_rows(num_rows, key, STEPS, tf.range(sum(sizes)))
    for step in (0, STEPS - 1):
        drawn = draw(num_rows, sizes, seed=7, round_number=3, user=5, step=step)
        together = np.concatenate([rows for rows, _ in drawn])
        assert np.array_equal(together, shuffles[step])
        assert all(mask.all() for _, mask in drawn)


def test_few_rows_leave_the_mean_meta_gradient_that_of_independent_batches():
    # Four rows of a user, drawn from its distribution, and batches of four asked for.
    rng = np.random.default_rng(0)
    model = reference.SoftmaxClassifier()
    weights = model.init(rng, 3, 2)
    config = PerFedAvgConfig(0.5, 1.0, hessian_batch="own")

    def sample(count):
        x = rng.normal(size=[count, 3]) + np.array([1.0, 0.0, 0.5])
        return x, (x[:, 0] + rng.normal(size=count) > 1).astype(int)

    def flat(roles):
        gradient = reference.meta_gradient(model, weights, roles, config)
        return np.concatenate([g.ravel() for g in gradient])

    def with_few_rows(user, step):
        x, y = sample(4)
        drawn = draw(4, [4, 4, 4], user=user, step=step)
        return flat([(x[rows[mask == 1]], y[rows[mask == 1]]) for rows, mask in drawn])

    found = [with_few_rows(*divmod(i, STEPS)) for i in range(4000)]
    independent = [flat([sample(1) for _ in range(3)]) for _ in range(8000)]
    target = np.mean(independent, 0)
    bias = np.linalg.norm(np.mean(found, 0) - target) / np.linalg.norm(target)
    assert bias < 0.1


def test_every_row_is_drawn_equally_often():
    counts = np.zeros(12)
    pairs = np.zeros([12, 12])
    for draw_number in range(600):
        user, step = divmod(draw_number, STEPS)
        (first, _), (second, _) = draw(12, [3, 3], user=user, step=step)
        counts[first] += 1
        counts[second] += 1
        pairs[first[0], second[0]] += 1
    assert stats.chisquare(counts).pvalue > 1e-4
    off_diagonal = pairs[~np.eye(12, dtype=bool)]
    assert np.trace(pairs) == 0
    assert stats.chisquare(off_diagonal).pvalue > 1e-4


@pytest.mark.parametrize("seed", [-1, 2**62])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(errors.ConfigError, match=f"seed is {seed}.*from 0 to"):
        batches.seed_pair(seed)


def test_large_seeds_differ_in_their_pairs():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32, 2**62 - 1]
    assert len({tuple(batches.seed_pair(s)) for s in seeds}) == len(seeds)


def test_a_step_draws_the_same_rows_however_many_there_are():
    key = tf.constant([3, 4])
    few, many = (batches.draw_rows(50, key, steps, tf.range(24)) for steps in (4, 9))
    assert np.array_equal(few, many[:4])


def test_several_users_draw_what_each_draws_alone():
    sizes = [30, 3, 12]
    keys = tf.constant([[1, 2], [3, 4], [5, 6]])
    numbers = tf.constant(sizes)

    def rows(num_rows):
        return batches.UserRows(
            num_rows, lambda i: i, lambda i: tf.cast(i, tf.float32), lambda i: i
        )

    together = batches.batch_source(rows(numbers), keys, 4, (5, 2))
    for step in range(4):
        for user in range(3):
            alone = batches.batch_source(rows(numbers[user]), keys[user], 4, (5, 2))
            for a, b in zip(alone(step), together(step), strict=True):
                assert np.array_equal(a.x, b.x[user])
                assert np.array_equal(a.y, b.y[user])
                assert np.array_equal(a.mask, b.mask[user])


def test_keys_of_several_users_are_those_of_each():
    seed = tf.constant(batches.seed_pair(5))
    users = tf.constant([3, 0, 70_000])
    together = batches.user_key(seed, tf.constant(2), users)
    alone = [batches.user_key(seed, tf.constant(2), user) for user in users]
    assert np.array_equal(together, alone)
    assert len({tuple(key.numpy()) for key in together}) == 3
    assert not np.array_equal(together, batches.user_key(seed, tf.constant(1), users))


@pytest.mark.parametrize("count", [1, 4, 7])
def test_random_sizes_are_from_one_to_all_and_equally_likely(count):
    masks = tf.function(batches.random_masks)(
        tf.constant(count), tf.constant([3, 4]), 4000, 8
    ).numpy()
    sizes = masks.sum(1).astype(int)
    # A batch's first rows, which are drawn at random, count.
    assert all((row[:size] == 1).all() for row, size in zip(masks, sizes, strict=True))
    shares = np.bincount(sizes, minlength=count + 1) / len(sizes)
    assert shares[0] == 0
    assert len(shares) == count + 1
    # Four standard deviations.
    assert np.abs(shares[1:] - 1 / count).max() < 4 * np.sqrt(1 / count / 4000)


def test_random_sizes_are_keyed_by_user_and_step():
    keys, counts = tf.constant([[1, 5], [1, 6]]), tf.constant([8, 8])
    both = batches.random_masks(counts, keys, 50, 8)
    assert both.shape == [50, 2, 8]
    for user in range(2):
        alone = batches.random_masks(counts[user], keys[user], 50, 8)
        assert np.array_equal(alone, both[:, user])
        fewer = batches.random_masks(counts[user], keys[user], 20, 8)
        assert np.array_equal(alone[:20], fewer)
    assert not np.array_equal(both[:, 0], both[:, 1])
    nobody = batches.random_masks(tf.constant(0), keys[0], 5, 8)
    assert not nobody.numpy().any()

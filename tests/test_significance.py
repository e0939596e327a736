"""Permutation tests over users, against every pattern of signs and an exact law."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tff_perfedavg.experiments.evaluation.significance import holm, sign_flip_p_value

# How long a busy machine takes to make up differences says nothing of them.


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=9))
def test_of_few_users_every_pattern_is_tried(thousandths):
    values = np.array(thousandths) / 1000
    observed = abs(values.sum())
    sums = [
        abs(np.dot(signs, values))
        for signs in itertools.product([-1, 1], repeat=len(values))
    ]
    expected = np.mean(np.array(sums) >= observed - 1e-12)
    assert sign_flip_p_value(values) == pytest.approx(expected, abs=1e-12)


def test_it_is_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    found = scipy.stats.permutation_test(
        [values], np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p_value(values) == pytest.approx(found.pvalue, rel=1e-12)


def exact_of_integers(values):
    """The p-value of whole numbers, by the law of their signed sum."""
    law = {0: 1.0}
    for value in values:
        after = {}
        for total, chance in law.items():
            for signed in (total - value, total + value):
                after[signed] = after.get(signed, 0.0) + chance / 2
        law = after
    observed = abs(sum(values))
    return sum(chance for total, chance in law.items() if abs(total) >= observed)


@pytest.mark.parametrize("count", [1, 2, 7, 25, 34])
def test_of_not_too_many_users_it_is_exact(count):
    values = np.random.default_rng(count).integers(-20, 30, count)
    expected = exact_of_integers(values.tolist())
    assert sign_flip_p_value(values / 1000) == pytest.approx(expected, rel=1e-12)


def test_of_more_users_patterns_are_drawn():
    values = np.random.default_rng(5).integers(-20, 24, 300)
    expected = exact_of_integers(values.tolist())
    assert 0.01 < expected < 0.5
    # Five standard errors of what is drawn.
    error = 5 * np.sqrt(expected * (1 - expected) / 100_000)
    assert abs(sign_flip_p_value(values / 1000) - expected) < error
    assert sign_flip_p_value(values) == sign_flip_p_value(values)
    # Nothing is impossible by chance.
    assert sign_flip_p_value(np.ones(300)) == 1 / 100_001


def test_users_that_do_not_differ_say_nothing():
    values = np.random.default_rng(1).normal(0.2, 1, 10)
    padded = np.concatenate([values, np.zeros(500)])
    assert sign_flip_p_value(padded) == sign_flip_p_value(values)
    assert sign_flip_p_value(np.zeros(5)) == 1.0
    assert np.isnan(sign_flip_p_value(np.array([])))


def test_it_rejects_as_often_as_it_says():
    rng = np.random.default_rng(2)
    p = np.array([sign_flip_p_value(rng.normal(size=10)) for _ in range(2000)])
    for level in (0.05, 0.2, 0.5):
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level / 2000)


def test_holm_by_hand():
    found = holm([0.04, 0.01, np.nan, 0.03, 0.5])
    # 4 x 0.01, 3 x 0.03, 2 x 0.04 is less than the one before, 0.5.
    np.testing.assert_allclose(found, [0.09, 0.04, np.nan, 0.09, 0.5])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_below_bonferroni(p):
    corrected = holm(p)
    assert np.all(corrected >= p)
    assert np.all(corrected <= np.minimum(1, len(p) * np.array(p)) + 1e-15)
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(corrected[order]) >= 0)

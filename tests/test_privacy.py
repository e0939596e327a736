"""Cohorts that nobody can foretell, and the epsilon that goes with them."""

import dp_accounting
import numpy as np
import pytest
import scipy.stats
from dp_accounting import pld

from tff_perfedavg import errors
from tff_perfedavg.experiments.training.privacy import (
    PrivacyAccount,
    amplified_epsilon,
    default_delta,
    unamplified_epsilon,
)
from tff_perfedavg.fleet.cohort import PoissonSampler, UniformSampler

SECRET = bytes(range(32))


def inclusion(sampler, num_users, num_rounds):
    """bool `[rounds, users]`: who was drawn."""
    found = np.zeros([num_rounds, num_users], bool)
    for number in range(num_rounds):
        cohort = sampler.draw(number)
        assert len(set(cohort.tolist())) == len(cohort)
        found[number, cohort] = True
    return found


def test_poisson_samples_include_each_user_independently_with_one_probability():
    users, size, rounds = 60, 12, 4000
    found = inclusion(PoissonSampler(range(users), size, SECRET), users, rounds)
    p = size / users
    # Users: alike. Rounds: sizes as of independent users, not of a fixed number.
    counts = found.sum(0)
    statistic = ((counts - rounds * p) ** 2 / (rounds * p * (1 - p))).sum()
    assert 1e-4 < scipy.stats.chi2.sf(statistic, users) < 1 - 1e-4
    sizes = found.sum(1)
    spread = sizes.var(ddof=1) / (users * p * (1 - p)) * (rounds - 1)
    assert 1e-4 < scipy.stats.chi2.sf(spread, rounds - 1) < 1 - 1e-4
    # Two users, and one user in two rounds, tell nothing of each other.
    for first, second in ((found[:, 0], found[:, 1]), (found[1:, 0], found[:-1, 0])):
        table = np.histogram2d(first, second, 2)[0]
        _, p_value, _, _ = scipy.stats.chi2_contingency(table)
        assert p_value > 1e-4


def test_a_cohort_of_fixed_size_is_no_poisson_sample():
    sizes = inclusion(UniformSampler(range(60), 12, 0), 60, 200).sum(1)
    assert set(sizes) == {12}


def test_poisson_samples_follow_from_the_secret_and_the_round_alone():
    first, again = (PoissonSampler(range(500), 50, SECRET) for _ in range(2))
    other = PoissonSampler(range(500), 50, SECRET[::-1])
    assert np.array_equal(first.draw(7), again.draw(7))
    assert not np.array_equal(first.draw(7), first.draw(8))
    assert not np.array_equal(first.draw(7), other.draw(7))


def test_everybody_or_an_expected_size_out_of_range():
    everyone = PoissonSampler(range(9), 9, SECRET)
    assert np.array_equal(everyone.draw(3), np.arange(9))
    with pytest.raises(
        errors.ConfigError, match="clients_per_round is 10; there are 9"
    ):
        PoissonSampler(range(9), 10, SECRET)


@pytest.mark.parametrize(
    ("noise", "cohort", "users", "rounds"),
    [(1.0, 100, 3500, 200), (0.6, 10, 100, 50), (0.8, 100, 10_000, 1000)],
)
def test_amplified_epsilon_is_dp_accountings_by_privacy_loss_distributions(
    noise, cohort, users, rounds
):
    accountant = pld.PLDAccountant()
    one = dp_accounting.PoissonSampledDpEvent(
        cohort / users, dp_accounting.GaussianDpEvent(noise)
    )
    accountant.compose(one, rounds)
    expected = accountant.get_epsilon(1e-5)
    found = amplified_epsilon(noise, cohort / users, rounds, 1e-5)
    # An upper bound, and a tight one.
    assert expected - 1e-6 <= found < 1.002 * expected


def test_unamplified_epsilon_is_that_of_one_gaussian_with_less_noise():
    # k rounds of noise z are one of z / sqrt(k) (arXiv 1905.02383, corollary 3.3).
    noise, rounds, delta = 0.8, 16, 1e-5
    mu = np.sqrt(rounds) / noise

    def delta_of(epsilon):
        cdf = scipy.stats.norm.cdf
        return cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * cdf(
            -mu / 2 - epsilon / mu
        )

    epsilon = unamplified_epsilon(noise, rounds, delta)
    assert delta_of(epsilon) <= delta
    assert delta_of(0.998 * epsilon) > delta
    assert np.isclose(amplified_epsilon(noise, 1.0, rounds, delta), epsilon)


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    by_rounds = [amplified_epsilon(1.0, 0.01, n, 1e-5) for n in (0, 1, 10, 100)]
    assert by_rounds[0] == 0
    assert by_rounds == sorted(set(by_rounds))
    by_noise = [amplified_epsilon(z, 0.01, 10, 1e-5) for z in (2.0, 1.0, 0.5)]
    assert by_noise == sorted(set(by_noise))
    assert default_delta(1000) < 1 / 1000
    with pytest.raises(errors.ConfigError, match="delta is 1"):
        amplified_epsilon(1.0, 0.01, 10, 1)


def test_next_to_no_noise_is_told_as_such_without_long_work():
    found = amplified_epsilon(0.01, 0.01, 1000, 1e-5)
    assert found > 1e4
    assert unamplified_epsilon(0.01, 1000, 1e-5) > found


def test_known_cohorts_cost_the_user_who_took_part_most_often_all_its_rounds():
    sampler = UniformSampler(range(1000), 100, 0)
    known = PrivacyAccount(0.8, 0.1, 1e-5, secret=False)
    hidden = PrivacyAccount(0.8, 0.1, 1e-5, secret=True)
    counts = np.zeros(1000, int)
    assert known.epsilon() == hidden.epsilon() == 0
    for number in range(50):
        cohort = sampler.draw(number)
        counts[cohort] += 1
        known.add_round(cohort)
        hidden.add_round(cohort)
    assert known.most_contributions == counts.max() > 5
    assert known.epsilon() == unamplified_epsilon(0.8, counts.max(), 1e-5)
    assert hidden.epsilon() == amplified_epsilon(0.8, 0.1, 50, 1e-5) < known.epsilon()

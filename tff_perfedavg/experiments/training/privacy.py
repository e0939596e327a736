"""Privacy accounting: the epsilon that a run has spent."""

from __future__ import annotations

from collections.abc import Callable

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp

from tff_perfedavg import errors

# Of privacy losses; with connected dots, epsilon comes out too large by less than this.
_DISCRETIZATION = 1e-3
# Beyond, it promises nothing, and Renyi's bound, some 15 % above, says so as well.
_LARGE_EPSILON = 100.0


def amplified_epsilon(
    noise_multiplier: float, probability: float, num_rounds: int, delta: float
) -> float:
    """Returns the epsilon of the Poisson-subsampled Gaussian mechanism.

    By privacy-loss distributions (dp-accounting; by Renyi accounting where epsilon is
    above 100), for user-level (epsilon, delta) differential privacy, adding or removing
    a user. It holds where every user is in every cohort with the probability given,
    independently, and nobody learns who was.

    Args:
      noise_multiplier: standard deviation of the noise over the clipping norm.
      probability: of a user to be in a cohort, in (0, 1].
      num_rounds: rounds done.
      delta: in (0, 1), well below 1 / number of users.

    Raises:
      ConfigError: if delta is not in (0, 1).
    """
    if probability == 1:
        return unamplified_epsilon(noise_multiplier, num_rounds, delta)
    one_round = dp_accounting.PoissonSampledDpEvent(
        probability, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    return _epsilon(one_round, num_rounds, delta)


def unamplified_epsilon(
    noise_multiplier: float, num_contributions: int, delta: float
) -> float:
    """Returns the epsilon without amplification: everybody knows who took part.

    Args:
      noise_multiplier: standard deviation of the noise over the clipping norm.
      num_contributions: rounds in which the user took part; of all users, the largest
        number bounds everybody's epsilon.
      delta: in (0, 1).

    Raises:
      ConfigError: if delta is not in (0, 1).
    """
    one_round = dp_accounting.GaussianDpEvent(noise_multiplier)
    return _epsilon(one_round, num_contributions, delta)


def default_delta(num_users: int) -> float:
    """Returns num_users^-1.1, a customary delta."""
    return num_users**-1.1


class PrivacyAccount:
    """A privacy accountant: the epsilon of a run, round by round."""

    def __init__(
        self, noise_multiplier: float, probability: float, delta: float, secret: bool
    ):
        """Begins with no round done.

        Args:
          noise_multiplier: standard deviation of the noise over the clipping norm.
          probability: of a user to be in a cohort.
          delta: in (0, 1).
          secret: whether cohorts are Poisson samples that nobody knows. If not, they
            are taken to be known to everybody.
        """
        self.delta = delta
        self.secret = secret
        self._noise_multiplier = noise_multiplier
        self._probability = probability
        self._num_rounds = 0
        self._contributions = np.zeros([0], np.int64)

    def add_round(self, cohort: np.ndarray) -> None:
        """Counts a round: int `[cohort]`, numbers of the users that took part."""
        self._num_rounds += 1
        if not self.secret:
            missing = max(cohort, default=-1) + 1 - len(self._contributions)
            self._contributions = np.pad(self._contributions, (0, max(0, missing)))
            self._contributions[cohort] += 1

    def add_rounds(self, draw: Callable[[int], np.ndarray], num_rounds: int) -> None:
        """Counts the first rounds of a run.

        Args:
          draw: from a round's number, from 0, to its cohort, int `[cohort]`.
          num_rounds: how many.
        """
        if self.secret:
            # Who took part makes no difference, and need not be drawn again.
            self._num_rounds += num_rounds
            return
        for round_number in range(num_rounds):
            self.add_round(draw(round_number))

    @property
    def most_contributions(self) -> int:
        """Rounds of the user that took part most often, where cohorts are known."""
        return int(self._contributions.max(initial=0))

    def epsilon(self) -> float:
        """Returns the epsilon spent so far."""
        if self.secret:
            return amplified_epsilon(
                self._noise_multiplier, self._probability, self._num_rounds, self.delta
            )
        return unamplified_epsilon(
            self._noise_multiplier, self.most_contributions, self.delta
        )


def _epsilon(event: dp_accounting.DpEvent, count: int, delta: float) -> float:
    if not 0 < delta < 1:
        raise errors.ConfigError(f"delta is {delta}; it must be between 0 and 1.")
    if count == 0:
        return 0.0
    composed = dp_accounting.SelfComposedDpEvent(event, int(count))
    # A bound, too, at no cost; the other one's grows with the epsilon.
    by_moments = rdp.RdpAccountant().compose(composed).get_epsilon(delta)
    if by_moments > _LARGE_EPSILON:
        return float(by_moments)
    accountant = pld.PLDAccountant(value_discretization_interval=_DISCRETIZATION)
    return float(accountant.compose(composed).get_epsilon(delta))

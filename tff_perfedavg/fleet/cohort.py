"""Cohort sampling: who takes part in a round.

A sampler's `draw` depends on the round's number and on what the sampler was made of,
and on nothing else, so a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tff_perfedavg import errors

Users = Sequence[int] | np.ndarray

# Sets these draws apart from every other use of the same seed.
_ROLE = 1


class CohortSampler(Protocol):
    """Draws the cohort of each round."""

    def draw(self, round_number: int) -> np.ndarray:
        """Returns a round's cohort: int64 `[cohort]` numbers of distinct users."""


class UniformSampler:
    """Cohorts of a fixed size, uniform without replacement, keyed by a seed.

    Whoever knows the seed knows all cohorts.
    """

    def __init__(self, users: Users, cohort_size: int, seed: int):
        """As `sample_cohort`, which raises the same errors."""
        _check_size(users, cohort_size)
        self._arguments = np.asarray(users), cohort_size, seed

    def draw(self, round_number: int) -> np.ndarray:
        return sample_cohort(*self._arguments, round_number)


def sample_cohort(
    users: Users, cohort_size: int, seed: int, round_number: int
) -> np.ndarray:
    """Draws a round's cohort uniformly, without replacement.

    Args:
      users: numbers of the users to draw from.
      cohort_size: users in the cohort.
      seed: the run's seed.
      round_number: the round, from 0.

    Returns:
      int64 `[cohort_size]` user numbers.

    Raises:
      ConfigError: if the cohort is empty or larger than the number of users.
    """
    _check_size(users, cohort_size)
    rng = np.random.default_rng([seed, round_number, _ROLE])
    return rng.choice(np.asarray(users), cohort_size, replace=False)


class PoissonSampler:
    """Poisson sampling: every user is in a cohort with one probability, independently.

    This is the sampling whose privacy amplification accountants compute. It amplifies
    only as long as nobody learns who took part, so it is keyed by a secret and not by
    the run's seed. Cohorts differ in size, and may be empty.
    """

    def __init__(self, users: Users, expected_size: int, secret: bytes):
        """Takes the users to draw from.

        Args:
          users: numbers of the users to draw from.
          expected_size: mean number of users in a cohort.
          secret: what the draws are keyed by, 16 bytes or more from `secrets`.

        Raises:
          ConfigError: if the expected size is below 1 or above the number of users.
        """
        _check_size(users, expected_size)
        self._users = np.asarray(users)
        self._probability = expected_size / len(users)
        self._secret = secret

    def draw(self, round_number: int) -> np.ndarray:
        # Through a hash: one round's draws, were they known, tell nothing of another's.
        key = hashlib.sha256(self._secret + round_number.to_bytes(8, "little")).digest()
        rng = np.random.default_rng(np.frombuffer(key, np.uint32))
        return self._users[rng.random(len(self._users)) < self._probability]


def _check_size(users: Users, cohort_size: int) -> None:
    if not 1 <= cohort_size <= len(users):
        raise errors.ConfigError(
            f"clients_per_round is {cohort_size}; there are {len(users)} training "
            f"users, so it must be from 1 to {len(users)}."
        )

"""Who takes part in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tff_perfedavg import errors

# Sets these draws apart from every other use of the same seed.
_ROLE = 1


def sample_cohort(
    users: Sequence[int] | np.ndarray, cohort_size: int, seed: int, round_number: int
) -> np.ndarray:
    """Draws a round's cohort uniformly, without replacement.

    The draw depends on its arguments alone, so a resumed run goes on as if it had
    never stopped.

    Args:
      users: numbers of the users to draw from.
      cohort_size: users in the cohort.
      seed: the run's seed.
      round_number: the round, from 0.

    Returns:
      int64 `[cohort_size]` user numbers.

    Raises:
      ConfigError: if the cohort is empty or larger than the population.
    """
    if not 1 <= cohort_size <= len(users):
        raise errors.ConfigError(
            f"clients_per_round is {cohort_size}; there are {len(users)} training "
            f"users, so it must be from 1 to {len(users)}."
        )
    rng = np.random.default_rng([seed, round_number, _ROLE])
    return rng.choice(np.asarray(users), cohort_size, replace=False)

"""How much privacy a run has spent."""

from __future__ import annotations

import dp_accounting
from dp_accounting import rdp

from tff_perfedavg import errors


def epsilon_spent(
    noise_multiplier: float,
    clients_per_round: int,
    num_users: int,
    num_rounds: int,
    delta: float,
) -> float:
    """Returns the epsilon of (epsilon, delta) user-level differential privacy.

    By Renyi accounting (dp-accounting), for the subsampled Gaussian mechanism, adding
    or removing a user. Cohorts are accounted for as if each user were in one with
    probability clients_per_round / num_users by itself (Poisson sampling), as is usual
    in the field; they are drawn to a fixed size, for which this is an approximation and
    no bound.

    Args:
      noise_multiplier: standard deviation of the noise over the clipping norm.
      clients_per_round: users in a cohort.
      num_users: users that cohorts are drawn from.
      num_rounds: rounds done.
      delta: in (0, 1), well below 1 / num_users.

    Raises:
      ConfigError: if delta is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise errors.ConfigError(f"delta is {delta}; it must be between 0 and 1.")
    if num_rounds == 0:
        return 0.0
    one_round = dp_accounting.PoissonSampledDpEvent(
        clients_per_round / num_users, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(one_round, num_rounds))
    return accountant.get_epsilon(delta)


def default_delta(num_users: int) -> float:
    """Returns num_users^-1.1, a customary delta."""
    return num_users**-1.1

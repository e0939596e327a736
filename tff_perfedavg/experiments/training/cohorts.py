"""Cohort sampling of a run: by its seed, or, if private, by a secret."""

from __future__ import annotations

import secrets

import numpy as np

from tff_perfedavg.experiments.files.checkpoints import Saved
from tff_perfedavg.fleet.cohort import CohortSampler, PoissonSampler, UniformSampler
from tff_perfedavg.progress import tell

_SECRET_BYTES = 32


def build_sampler(
    users: np.ndarray, cohort_size: int, seed: int, secret: bytes | None
) -> CohortSampler:
    """Builds a cohort sampler: Poisson where there is a secret, else of fixed size.

    Args:
      users: int `[users]`, numbers of the users to draw from.
      cohort_size: how many, or their mean number.
      seed: what cohorts of a fixed size are keyed by.
      secret: what Poisson samples are keyed by.

    Raises:
      ConfigError: if the cohort is larger than the number of users.
    """
    if secret is not None:
        return PoissonSampler(users, cohort_size, secret)
    return UniformSampler(users, cohort_size, seed)


def new_secret(samples_secretly: bool) -> bytes | None:
    """Returns the secret of a new run's cohort sampling; None for the seed."""
    return secrets.token_bytes(_SECRET_BYTES) if samples_secretly else None


def secret_of(samples_secretly: bool, saved: Saved | None) -> bytes | None:
    """Returns the secret of a new or resumed run's cohort sampling; None for the seed.

    Args:
      samples_secretly: whether a new run has one.
      saved: the checkpoint of a resumed run; None for a new one.
    """
    if saved is None:
        return new_secret(samples_secretly)
    found = saved.notes.get("cohort_secret")
    if found is None and samples_secretly:
        tell(
            f"{saved.path} is of a version that drew private cohorts from the seed; "
            "the run goes on with these, and its epsilon counts no amplification."
        )
    return None if found is None else bytes.fromhex(found)

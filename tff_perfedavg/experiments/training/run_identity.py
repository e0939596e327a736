"""Identity of a run, in its models and checkpoints: settings, hashes and secret."""

from __future__ import annotations

import dataclasses
from typing import Any

from tff_perfedavg.experiments.settings.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """Identity of a run: settings, hashes of its inputs, secret of its cohorts.

    Attributes:
      experiment: the settings.
      sources: hashes of the store, and of files that were given, by name.
      secret: what cohorts are keyed by; None for the seed.
    """

    experiment: Experiment
    sources: dict[str, str]
    secret: bytes | None = dataclasses.field(default=None, repr=False)

    def notes(self) -> dict[str, Any]:
        """Returns the identity as a checkpoint keeps it."""
        notes: dict[str, Any] = {
            "experiment": self.experiment.flat(),
            "sources": self.sources,
        }
        if self.secret is not None:
            notes["cohort_secret"] = self.secret.hex()
        return notes

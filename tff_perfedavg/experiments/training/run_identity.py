"""What makes a run this run and no other; its models and checkpoints carry it."""

from __future__ import annotations

import dataclasses
from typing import Any

from tff_perfedavg.experiments.settings.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """Settings, and what the result depends on besides.

    Attributes:
      experiment: the settings.
      sources: hashes of the store, and of files that were given, by name.
      secret: what cohorts are keyed by; None for the seed.
    """

    experiment: Experiment
    sources: dict[str, str]
    secret: bytes | None = dataclasses.field(default=None, repr=False)

    def notes(self) -> dict[str, Any]:
        """Returns it as a checkpoint keeps it."""
        notes: dict[str, Any] = {
            "experiment": self.experiment.flat(),
            "sources": self.sources,
        }
        if self.secret is not None:
            notes["cohort_secret"] = self.secret.hex()
        return notes

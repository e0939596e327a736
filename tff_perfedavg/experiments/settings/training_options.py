"""How a run is watched and kept: nothing of it changes the result.

Plain Python, so that a command checks its flags before TensorFlow is loaded.
"""

from __future__ import annotations

import dataclasses
import re

from tff_perfedavg import errors
from tff_perfedavg.optimization.config import check_at_least


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """What is saved and measured while a run trains.

    Attributes:
      rounds_per_checkpoint: rounds from one saved state to the next.
      checkpoints_kept: how many of the newest are kept.
      rounds_per_evaluation: rounds from one evaluation of the users to the next; 0
        for none.
      adaptation_steps: m, steps at which users are measured in these, at the run's
        inner learning rate on all of a user's adaptation rows.
      num_evaluation_users: the most users, of those seen and of the new, that are
        measured in these; 0 for all.
      best_metric: `GROUP/QUANTITY/STEP`, for example `new/accuracy/1`: the model of the
        evaluation that was best by it is kept beside the last round's; '' for none.
      delta: of the differential privacy that is reported, where there is any; None for
        the number of training users to the power -1.1.
      resume: go on where a run of that name was left, rather than begin it anew.
    """

    rounds_per_checkpoint: int = 50
    checkpoints_kept: int = 3
    rounds_per_evaluation: int = 0
    adaptation_steps: int = 1
    num_evaluation_users: int = 200
    best_metric: str = ""
    delta: float | None = None
    resume: bool = True

    def __post_init__(self):
        check_at_least(self, "rounds_per_checkpoint", 1)
        check_at_least(self, "checkpoints_kept", 1)
        for field in (
            "rounds_per_evaluation",
            "adaptation_steps",
            "num_evaluation_users",
        ):
            check_at_least(self, field, 0)
        if self.delta is not None and not 0 < self.delta < 1:
            raise errors.ConfigError(
                f"delta is {self.delta}; it must be between 0 and 1."
            )
        if not self.best_metric:
            return
        match = re.fullmatch(r"(seen|new)/(accuracy|loss)/(\d+)", self.best_metric)
        if not match or int(match[3]) > self.adaptation_steps:
            raise errors.ConfigError(
                f"best_metric is {self.best_metric!r}; it is seen or new, accuracy or "
                f"loss, and a step from 0 to {self.adaptation_steps}, for example "
                "new/accuracy/1."
            )
        if not self.rounds_per_evaluation:
            raise errors.ConfigError(
                f"best_metric is {self.best_metric!r}, but rounds_per_evaluation is 0; "
                "nothing would be measured."
            )

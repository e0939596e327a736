"""Training options: evaluation, checkpoints; none changes the result.

Plain Python, so that a command checks its flags before TensorFlow is loaded.
"""

from __future__ import annotations

import dataclasses
import re

from tff_perfedavg import errors
from tff_perfedavg.optimization.config import check_at_least
from tff_perfedavg.settings import setting


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """Options of evaluation and checkpoints during training.

    Users are measured as the run's algorithm has them adapt, on all of their adaptation
    rows. `best_metric` is `GROUP/QUANTITY/STEP`: the model of the evaluation that was
    best by it is kept beside the last round's.
    """

    rounds_per_checkpoint: int = setting(50, "Rounds between saved states.")
    checkpoints_kept: int = setting(3, "How many of the newest are kept.")
    rounds_per_evaluation: int = setting(50, "Rounds between evaluations; 0 for none.")
    adaptation_steps: int = setting(1, "Steps at which users are measured in these.")
    num_evaluation_users: int = setting(
        200, "The most users measured, seen and new; 0 for all."
    )
    best_metric: str = setting(
        "",
        "Keep the best evaluation's model by this, too, for example new/accuracy/1.",
    )
    delta: float | None = setting(
        None, "Of the differential privacy reported; by default users^-1.1."
    )
    resume: bool = setting(
        True, "Go on with the run of this name; --noresume begins it anew."
    )

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

"""What an exported file can do, validated when built. Loads no TensorFlow."""

from __future__ import annotations

import dataclasses

from tff_perfedavg import errors
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.algorithms.per_fed_avg import EXACT
from tff_perfedavg.algorithms.registry import LocalSettings, methods
from tff_perfedavg.optimization.config import (
    MOST_BATCH_ROWS,
    check_at_least,
)

FLOAT32, FLOAT16 = "float32", "float16"
STORAGES = (FLOAT32, FLOAT16)
# The most steps that one call of `adapt_steps` takes: a slip in a count should not
# keep a phone busy for days.
MAX_ADAPT_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How a model is exported. Shapes are fixed in the file.

    Attributes:
      batch_size: rows of a batch in `adapt`, `adapt_steps` and `meta_update`, at most
        1,000,000; a shorter one is padded with label -1 (NaN where labels are no
        classes).
      infer_batch_size: rows `infer` takes at once, at most 1,000,000.
      variant: what a local step of `meta_update` is, one of `registry.methods()`: a
        variant of Per-FedAvg, or another algorithm.
      max_local_steps: the most steps (tau) one `meta_update` takes; 0 leaves the
        signature out. Rows of all batches of all steps are at most 1,000,000.
      storage: how the initial weights are kept in the file, one of `STORAGES`. The
        arithmetic is float32 in either case.
      num_trainable: how many of the last weight tensors adapt (a dense layer has two,
        kernel and bias); None is all. The others are frozen.
      quantize_frozen: keep the frozen weights as 8-bit integers.
    """

    batch_size: int = 20
    infer_batch_size: int = 1
    variant: str = EXACT
    max_local_steps: int = 10
    storage: str = FLOAT32
    num_trainable: int | None = None
    quantize_frozen: bool = False

    def __post_init__(self):
        # The file takes this many rows at once, whatever a user has.
        check_at_least(self, "batch_size", 1, MOST_BATCH_ROWS)
        check_at_least(self, "infer_batch_size", 1, MOST_BATCH_ROWS)
        check_at_least(self, "max_local_steps", 0)
        if self.num_trainable is not None:
            check_at_least(self, "num_trainable", 1)
        errors.check_known("ExportConfig.variant", self.variant, tuple(methods()))
        errors.check_known("ExportConfig.storage", self.storage, STORAGES)
        rows_per_step = self.batch_size * len(self.algorithm.roles)
        if self.max_local_steps * rows_per_step > MOST_BATCH_ROWS:
            raise errors.ConfigError(
                f"ExportConfig.max_local_steps is {self.max_local_steps}, with "
                f"{rows_per_step} rows a step; meta_update takes at most "
                f"{MOST_BATCH_ROWS} rows at once. Take fewer steps (0 leaves "
                "meta_update out) or a smaller batch_size."
            )
        if self.quantize_frozen and self.num_trainable is None:
            raise errors.ConfigError(
                "ExportConfig.quantize_frozen is set, but nothing is frozen; give "
                "num_trainable, for instance 2 for the last dense layer."
            )
        if self.quantize_frozen and self.storage == FLOAT16:
            raise errors.ConfigError(
                "ExportConfig.quantize_frozen and storage 'float16' exclude each "
                "other; choose one."
            )

    @property
    def algorithm(self) -> AlgorithmConfig:
        """The algorithm whose local steps `meta_update` takes.

        A device gives its rates and the number of steps.
        """
        return LocalSettings(
            **methods()[self.variant],
            num_local_steps=max(self.max_local_steps, 1),
            batch_size=self.batch_size,
        ).config()

"""Export configuration of a model for devices. Loads no TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from tff_perfedavg import errors
from tff_perfedavg.algorithms.algorithm_config import AlgorithmConfig
from tff_perfedavg.algorithms.registry import LocalSettings, methods
from tff_perfedavg.optimization.config import (
    MOST_BATCH_ROWS,
    AdaptationConfig,
    check_at_least,
)
from tff_perfedavg.optimization.hessian import EXACT
from tff_perfedavg.optimization.moves import ALL, BODY, HEAD
from tff_perfedavg.settings import setting

FLOAT32, FLOAT16 = "float32", "float16"
STORAGES = (FLOAT32, FLOAT16)
# The most steps that one call of `adapt_steps` takes: a slip in a count should not
# keep a phone busy for days.
MAX_ADAPT_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export configuration: batch sizes, signatures, storage and what adapts.

    Shapes are fixed in the file. A batch that is shorter than `batch_size` is padded
    with label -1 (NaN where labels are no classes). Rows of all batches of all steps of
    `meta_update` are at most 1,000,000. The arithmetic is float32 whatever the storage.

    Attributes:
      trained: what the model was trained by: users adapt as it says, and `meta_update`
        has its settings. None for adaptation of all weights, without a pull.
      num_tensors: how many weight tensors the model has; None where it is not known
        yet.
    """

    batch_size: int = setting(20, "Rows a batch holds at most.")
    infer_batch_size: int = setting(1, "Rows `infer` takes at once.")
    variant: str | None = setting(
        None,
        "What a local step of `meta_update` is; by default that of training, and "
        "exact where nothing is said of it.",
        lambda: tuple(methods()),
    )
    max_local_steps: int = setting(
        10, "The most steps of `meta_update`; 0 leaves it out."
    )
    max_guarded_steps: int = setting(
        20, "The most steps of `adapt_guarded`; 0 leaves it out."
    )
    storage: str = setting(FLOAT32, "How the initial weights are kept.", STORAGES)
    num_trainable: int | None = setting(
        None,
        "How many of the last weight tensors adapt; by default those that adapted in "
        "training.",
    )
    quantize_frozen: bool = setting(False, "Keep frozen weights as 8-bit integers.")
    family: str = setting(
        "", "A name that versions of a model share; a device adopts later ones."
    )
    version: int = setting(1, "Of the model, within its family.")
    trained: LocalSettings | None = None
    num_tensors: int | None = None

    def __post_init__(self) -> None:
        # The file takes this many rows at once, whatever a user has.
        check_at_least(self, "batch_size", 1, MOST_BATCH_ROWS)
        check_at_least(self, "infer_batch_size", 1, MOST_BATCH_ROWS)
        check_at_least(self, "max_local_steps", 0)
        check_at_least(self, "max_guarded_steps", 0, MAX_ADAPT_STEPS)
        check_at_least(self, "version", 1)
        if self.num_trainable is not None:
            check_at_least(self, "num_trainable", 1)
            self._check_num_trainable()
        if self.variant is not None:
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
        if self.quantize_frozen and self.storage == FLOAT16:
            raise errors.ConfigError(
                "ExportConfig.quantize_frozen and storage 'float16' exclude each "
                "other; choose one."
            )

    def _check_num_trainable(self) -> None:
        asked, count = self.num_trainable, self.num_tensors
        if asked is not None and count is not None and asked > count:
            raise errors.ConfigError(
                f"ExportConfig.num_trainable is {asked}, but the model "
                f"has {count} weight tensors; give at most {count}, by which all "
                "adapt, or leave it out for those that adapted in training."
            )

    def of_run(self, trained: LocalSettings, parameters: Sequence) -> ExportConfig:
        """Returns the configuration for the model of a training run.

        Args:
          trained: what the run's users do in a round.
          parameters: its weights, with learned rates behind them.

        Raises:
          ConfigError: if an option does not suit them.
        """
        count = len(trained.adaptation.weights(parameters))
        return dataclasses.replace(self, trained=trained, num_tensors=count)

    @functools.cached_property
    def algorithm(self) -> AlgorithmConfig:
        """The algorithm whose local steps `meta_update` takes.

        A device gives its rates and the number of steps.
        """
        sizes: dict[str, Any] = {
            "num_local_steps": max(self.max_local_steps, 1),
            "batch_size": self.batch_size,
        }
        trained = self.trained or LocalSettings()
        of_method = {}
        if self.trained is None or self.method != trained.method:
            of_method = methods()[self.method]
        return dataclasses.replace(trained, **of_method, **sizes).config

    @property
    def method(self) -> str:
        """The name of the local steps' method in `registry.methods()`."""
        by_default = self.trained.method if self.trained is not None else EXACT
        return self.variant or by_default

    def differences(self) -> list[str]:
        """Returns the differences between the file and training, a sentence each."""
        if self.trained is None:
            return []
        found, own, how = [], self.trained.adaptation, self.adaptation
        is_fixed_head = getattr(self.trained.config, "num_fixed", 0)
        is_meant = self.num_trainable is None or self.num_trainable == is_fixed_head
        if not is_meant and how != own:
            remedy = "train with the algorithm anil for a head that adapts"
            if how.moves == ALL:
                remedy = "leave it out to adapt those"
            found.append(
                f"num_trainable is {self.num_trainable}: the file adapts {_words(how)} "
                f"weight tensors, and training adapted {_words(own)}; {remedy}."
            )
        if self.max_local_steps and self.method != self.trained.method:
            found.append(
                f"variant is {self.method}: meta_update takes its steps, and training "
                f"took those of {self.trained.method}."
            )
        if self.batch_size < self.trained.batch_size:
            found.append(
                f"batch_size is {self.batch_size}: the file's batches hold fewer rows "
                f"than the {self.trained.batch_size} of training."
            )
        if 0 < self.max_local_steps < self.trained.num_local_steps:
            found.append(
                f"max_local_steps is {self.max_local_steps}: meta_update takes fewer "
                f"than the {self.trained.num_local_steps} local steps of training."
            )
        return found

    @functools.cached_property
    def adaptation(self) -> AdaptationConfig:
        """The configuration of the adaptation on a device."""
        own = AdaptationConfig(1.0) if self.trained is None else self.trained.adaptation
        if self.num_trainable is None:
            return own
        if self.num_trainable == self.num_tensors:
            return dataclasses.replace(own, moves=ALL)
        head = self.num_trainable
        return dataclasses.replace(own, moves=HEAD, head_tensors=head)


def _words(how: AdaptationConfig) -> str:
    """Describes the trainable part of a model."""
    return {
        ALL: "all",
        HEAD: f"the last {how.head_tensors}",
        BODY: f"all but the last {how.head_tensors}",
    }[how.moves]

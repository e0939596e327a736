"""What an exported file can do, validated when built. Loads no TensorFlow."""

from __future__ import annotations

import dataclasses

from tff_perfedavg import errors
from tff_perfedavg.optimization.config import EXACT, VARIANTS

FLOAT32, FLOAT16 = "float32", "float16"
STORAGES = (FLOAT32, FLOAT16)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How a model is exported. Shapes are fixed in the file.

    Attributes:
      batch_size: rows of a batch in `adapt`, `adapt_steps` and `meta_update`; a
        shorter one is padded with label -1 (NaN where labels are no classes).
      infer_batch_size: rows `infer` takes at once.
      variant: the meta-gradient of `meta_update`, one of `VARIANTS`.
      max_local_steps: the most steps (tau) one `meta_update` takes; 0 leaves the
        signature out.
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
        lowest = {"batch_size": 1, "infer_batch_size": 1, "max_local_steps": 0}
        if self.num_trainable is not None:
            lowest["num_trainable"] = 1
        for field, least in lowest.items():
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise errors.ConfigError(
                    f"ExportConfig.{field} is {value!r}; it must be a whole number of "
                    f"at least {least}."
                )
        errors.check_known("ExportConfig.variant", self.variant, VARIANTS)
        errors.check_known("ExportConfig.storage", self.storage, STORAGES)
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

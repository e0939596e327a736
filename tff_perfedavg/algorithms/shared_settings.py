"""Dataclass fields shared by several algorithms' configurations."""

from __future__ import annotations

from typing import Any

from tff_perfedavg.optimization import hessian
from tff_perfedavg.settings import setting


def inner_steps() -> Any:
    """Returns the field of m, the number of inner steps."""
    return setting(1, "m, gradient steps a user adapts by within training.")


def random_support() -> Any:
    """Returns the field of whether D has a random number of rows."""
    return setting(False, "Adapt, in training, on one to batch_size rows, by lot.")


def hessian_batch() -> Any:
    """Returns the field of the batch of Hessian-vector products, D or D''."""
    return setting(
        hessian.SUPPORT_BATCH,
        "Rows of Hessian-vector products: the support batch's, or a batch of their "
        "own, as in the paper.",
        hessian.BATCHES,
        unrecorded=hessian.OWN_BATCH,
    )


def head_tensors() -> Any:
    """Returns the dataclass field of the number of weight tensors in the head."""
    return setting(
        2, "How many of the last weight tensors are the head; a dense layer has two."
    )

"""Settings that several algorithms have, said once."""

from __future__ import annotations

from typing import Any

from tff_perfedavg.optimization import hessian
from tff_perfedavg.settings import setting


def inner_steps() -> Any:
    """m, in the field's terms."""
    return setting(1, "m, gradient steps a user adapts by within training.")


def random_support() -> Any:
    """The rows of D."""
    return setting(False, "Adapt, in training, on one to batch_size rows, by lot.")


def hessian_batch() -> Any:
    """D'', or D in its place."""
    return setting(
        hessian.SUPPORT_BATCH,
        "Rows of Hessian-vector products: the support batch's, or a batch of their "
        "own, as in the paper.",
        hessian.BATCHES,
        unrecorded=hessian.OWN_BATCH,
    )


def head_tensors() -> Any:
    """What the head is."""
    return setting(
        2, "How many of the last weight tensors are the head; a dense layer has two."
    )

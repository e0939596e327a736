"""Registry of replacement gradients by operation type, and their errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors

PREFIX = "TffPerfedavg"
FREEZE = "freeze the weights up to it (ExportConfig.num_trainable)"
# From an operation's type to the registered name of its replacement gradient; for
# optimization.gradients.replaced_gradients.
OVERRIDES: dict[str, str] = {}


def replaces(op_type: str) -> Callable[[Callable], Callable]:
    """Registers a function as the replacement gradient of an operation type."""

    def register(function):
        name = f"{PREFIX}{op_type}"
        tf.RegisterGradient(name)(function)
        OVERRIDES[op_type] = name
        return function

    return register


def check(op: tf.Operation, condition, what: str) -> None:
    """Raises `ModelError`, naming the layer, unless a condition holds.

    Args:
      op: the operation that is differentiated.
      condition: bool, or an array of which all must hold.
      what: what is wrong otherwise, as it follows the operation's name: "is dilated".
    """
    if not np.all(condition):
        raise errors.ModelError(
            f"{layer_of(op.name)!r} ({op.type}) {what}; such an operation cannot be "
            f"trained on a device. Change the layer, or {FREEZE}."
        )


def check_channels_last(op: tf.Operation) -> None:
    """Raises `ModelError` for an operation on images `[batch, channels, ...]`."""
    found = op.get_attr("data_format")
    check(op, found in (b"NHWC", b"NDHWC"), "has channels first")


def layer_of(op_name: str) -> str:
    """Returns the layer that made an operation, from the operation's name.

    Names begin with the model, then the layer: `sequential/lstm/while/MatMul`.
    """
    parts = [
        part
        for part in op_name.split("/")
        if not part.startswith(("derivative", "while")) and not part.endswith("_grad")
    ]
    return parts[1] if len(parts) > 2 else parts[0]

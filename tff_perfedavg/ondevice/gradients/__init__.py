"""Replacement gradients, composed of built-in TensorFlow Lite operations.

TensorFlow's own gradient functions use operations such as `EluGrad` or
`Conv2DBackpropFilter` that a phone's runtime lacks. Here each is written with built-in
operations, whose gradients are built in again: meta-gradients differentiate twice.
Each replacement computes the same number as the original, to rounding.

A gradient of one's own is a function in one of these modules under `@replaces`, and a
case in `tests/test_device_gradients.py`.
"""

from tff_perfedavg.ondevice.gradients import (
    calls,
    convolutions,
    pointwise,
    shapes,
    windows,
)
from tff_perfedavg.ondevice.gradients.registry import FREEZE, OVERRIDES, layer_of

__all__ = [
    "FREEZE",
    "OVERRIDES",
    "calls",
    "convolutions",
    "layer_of",
    "pointwise",
    "shapes",
    "windows",
]

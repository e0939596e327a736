"""The mathematics of local training and adaptation, on tensors.

The names below are what algorithms are made of. They are loaded on first use, so that
a module that names them, and is asked for its settings alone, loads no TensorFlow.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "Adaptation": "adaptation",
    "HessianProduct": "hessian",
    "LocalAlgorithm": "local_algorithm",
    "differentiable": "gradients",
    "exact": "hessian",
    "first_order": "hessian",
    "global_norm": "gradients",
    "gradient": "gradients",
    "hessian_free": "hessian",
    "loss_and_gradient": "gradients",
    "subtract": "gradients",
    "with_adaptation_gain": "local_algorithm",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    globals()[name] = getattr(module, name)
    return globals()[name]

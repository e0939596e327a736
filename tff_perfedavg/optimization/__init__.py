"""The mathematics of local training and adaptation, on tensors.

The names below are what algorithms are made of. They are loaded on first use, so that
a module that names them, and is asked for its settings alone, loads no TensorFlow.
"""

from __future__ import annotations

from tff_perfedavg import lazy

_HOMES = {
    "Adaptation": "adaptation",
    "HessianProduct": "hessian",
    "LocalAlgorithm": "local_algorithm",
    "MetaGradient": "inner_steps",
    "differentiable": "gradients",
    "exact": "hessian",
    "first_order": "hessian",
    "global_norm": "gradients",
    "gradient": "gradients",
    "hessian_free": "hessian",
    "loss_and_gradient": "gradients",
    "meta_gradient": "inner_steps",
    "subtract": "gradients",
    "with_adaptation_gain": "local_algorithm",
}


__getattr__ = lazy.names_of(__name__, _HOMES)

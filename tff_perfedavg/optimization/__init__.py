"""Optimization on tensors: gradients, Hessian-vector products, adaptation, batches.

The names below are what algorithms are made of. They are loaded on first use, so that
a module that names them, and is asked for its settings alone, loads no TensorFlow.
"""

from tff_perfedavg import lazy

__getattr__, __dir__, __all__ = lazy.names_of(__name__)

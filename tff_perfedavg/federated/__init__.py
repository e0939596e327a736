"""Federated computations: forms of client data, client work, learning processes."""

from tff_perfedavg import lazy

__getattr__, __dir__, __all__ = lazy.names_of(__name__)

"""Federated learning and meta-learning algorithms, each in a file of its own."""

from tff_perfedavg import lazy

__getattr__, __dir__, __all__ = lazy.names_of(__name__)

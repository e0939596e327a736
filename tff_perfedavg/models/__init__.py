"""Pure functional models: weights in, outputs out."""

from tff_perfedavg import lazy

__getattr__, __dir__, __all__ = lazy.names_of(__name__)

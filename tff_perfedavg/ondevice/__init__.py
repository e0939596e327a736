"""The initial model as a TensorFlow Lite file that adapts on its owner's device."""

from tff_perfedavg import lazy

__getattr__, __dir__, __all__ = lazy.names_of(__name__)

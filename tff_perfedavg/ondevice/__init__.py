"""On-device personalization: export to TensorFlow Lite, adaptation with LiteRT."""

from tff_perfedavg import lazy

__getattr__, __dir__, __all__ = lazy.names_of(__name__)

"""The initial model as a TensorFlow Lite file that adapts on its owner's device."""

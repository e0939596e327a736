"""What the text of arXiv 2002.07948, section 5, leaves open of its MLP: loss and start.

Each function builds that MLP another way: `--model=.../paper_variants.py:NAME`.
"""

import dataclasses

import numpy as np
import tensorflow as tf

import tff_perfedavg as pfa
from tff_perfedavg.models.model import masked_squared_error


def _with_outputs(input_shape, num_classes, name, change):
    """The MLP whose outputs, taken for logits, are changed."""
    model = pfa.models.mlp(input_shape, num_classes)
    return dataclasses.replace(
        model, name=name, apply=lambda weights, x: change(model.apply(weights, x))
    )


def double_softmax(input_shape, num_classes):
    """Probabilities are taken for logits, as by a softmax layer under that loss."""
    return _with_outputs(input_shape, num_classes, "double_softmax", tf.nn.softmax)


def elu_outputs(input_shape, num_classes):
    """The activation of the hidden layers on the outputs, too."""
    return _with_outputs(input_shape, num_classes, "elu_outputs", tf.nn.elu)


def sigmoid_outputs(input_shape, num_classes):
    return _with_outputs(input_shape, num_classes, "sigmoid_outputs", tf.nn.sigmoid)


def _squared_error(outputs, labels, mask):
    """The mean over rows of the squared distance to one-hot labels."""
    aims = tf.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
    # That loss is the mean over outputs, too.
    return outputs.shape[-1] * masked_squared_error(outputs, aims, mask)


def squared_error(input_shape, num_classes):
    """The squared error of linear outputs."""
    model = pfa.models.mlp(input_shape, num_classes)
    return dataclasses.replace(model, name="squared_error", loss=_squared_error)


def softmax_squared_error(input_shape, num_classes):
    """The squared error of probabilities."""
    model = double_softmax(input_shape, num_classes)
    return dataclasses.replace(model, name="softmax_squared_error", loss=_squared_error)


def _starting(input_shape, num_classes, name, deviation):
    model = pfa.models.mlp(input_shape, num_classes)

    def init(seed):
        rng = np.random.default_rng(seed)
        return [
            (deviation * rng.standard_normal(w.shape) * (w.ndim > 1)).astype("float32")
            for w in model.init(seed)
        ]

    return dataclasses.replace(model, name=name, init=init)


def small_start(input_shape, num_classes):
    """Kernels of standard deviation 0.01."""
    return _starting(input_shape, num_classes, "small_start", 0.01)


def wide_start(input_shape, num_classes):
    """Kernels of standard deviation 1."""
    return _starting(input_shape, num_classes, "wide_start", 1.0)

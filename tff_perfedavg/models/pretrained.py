"""Pretrained frozen feature extractors (bodies), on which a head is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models import efficientnet_lite
from tff_perfedavg.models.model import Model


@dataclasses.dataclass(frozen=True)
class Body:
    """A frozen feature extractor of images.

    Attributes:
      name: of the network.
      image_size: pixels a side that images are resized to.
      weights: what it is made of; constants.
      network: from (weights, images `[batch, height, width, 3]` in [0, 1], size) to
        features `[batch, features]`.
    """

    name: str
    image_size: int
    weights: Sequence[np.ndarray]
    network: Callable[[Sequence, tf.Tensor, int], tf.Tensor]

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Returns float32 `[batch, features]`.

        Args:
          images: float32 `[batch, height, width]`, or with 1 or 3 channels behind, in
            [0, 1].
        """
        if images.shape.rank == 3:
            images = images[..., tf.newaxis]
        if images.shape[-1] == 1:
            images = tf.concat([images] * 3, -1)
        weights = [tf.constant(w) for w in self.weights]
        return self.network(weights, images, self.image_size)


_LOADERS = {"efficientnet_lite0": (efficientnet_lite.load, efficientnet_lite.apply)}


def load_body(name: str, image_size: int) -> Body:
    """Loads a body with its pretrained weights.

    Args:
      name: of the network: `efficientnet_lite0`.
      image_size: pixels a side that images are resized to.

    Raises:
      ModelError: if there is no such body, or its weights are not installed.
    """
    if name not in _LOADERS:
        raise errors.ModelError(
            f"There is no body {name!r}; known: {', '.join(_LOADERS)}."
        )
    load, network = _LOADERS[name]
    return Body(name, image_size, load(), network)


def with_body(head: Model, body: Body, input_shape: Sequence[int]) -> Model:
    """Returns a model of images: a frozen body, then a head that is trained.

    Args:
      head: a model of the body's features.
      body: of `load_body`.
      input_shape: of an image, as `Body.features` takes them.
    """
    own = head.features
    return dataclasses.replace(
        head,
        name=f"{body.name}_{head.name}",
        apply=lambda weights, x: head.apply(weights, body.features(x)),
        input_spec=tf.TensorSpec([None, *input_shape], tf.float32),
        features=own and (lambda weights, x: own(weights, body.features(x))),
        has_constants=True,
    )

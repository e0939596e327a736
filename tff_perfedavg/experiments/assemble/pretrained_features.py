"""Feature extraction from users' images by a frozen pretrained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.data.user_store import Description, FrozenBody, Rows, User
from tff_perfedavg.models.pretrained import load_body
from tff_perfedavg.progress import progress

# Images that the network sees at once.
_BATCH = 64
# Seconds of which nothing is told.
_PATIENCE_S = 5.0


def embed(
    description: Description,
    make_users: Callable[[], Iterable[User]],
    config: DataConfig,
) -> tuple[Description, Callable[[], Iterator[User]]]:
    """Replaces users' images by a frozen network's features, float32.

    Args:
      description: what the rows mean without.
      make_users: the users, whose rows are images; called once, and again for
        each time that users are made.
      config: which network, and the size it sees images in.

    Returns:
      What the rows mean now, and a function that makes the users, in their order.

    Raises:
      ModelError: if the network's weights are not installed.
    """
    body = load_body(config.features, config.image_size)
    scale = float(np.asarray(description.scale))
    total = 0
    shape: tuple[int, ...] = ()
    for user in make_users():
        total += sum(len(rows.y) for rows in _splits(user))
        shape = user.adaptation.x.shape[1:]
    described = dataclasses.replace(
        description,
        scale=1.0,
        body=FrozenBody(body.name, body.image_size, shape, scale),
    )
    spec = tf.TensorSpec([None, *shape], tf.float32)
    network = tf.function(body.features, input_signature=[spec])

    def features(x: np.ndarray) -> np.ndarray:
        images = np.asarray(x, np.float32) * np.float32(scale)
        batches = range(0, max(len(images), 1), _BATCH)
        return np.concatenate([network(images[b : b + _BATCH]) for b in batches])

    def users() -> Iterator[User]:
        with progress(
            total=total, desc=body.name, unit="image", patience=_PATIENCE_S
        ) as bar:
            for user in make_users():
                adaptation, evaluation, *training = (
                    Rows(features(rows.x), rows.y) for rows in _splits(user)
                )
                yield user._replace(
                    adaptation=adaptation,
                    evaluation=evaluation,
                    training=training[0] if training else None,
                )
                bar.update(sum(len(rows.y) for rows in _splits(user)))

    return described, users


def _splits(user: User) -> list[Rows]:
    """Returns a user's adaptation and evaluation rows, and those for training alone."""
    training = [] if user.training is None else [user.training]
    return [user.adaptation, user.evaluation, *training]

"""What several tests need: toy users and arrays compared by relative error."""

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.models.model import Batch
from tff_perfedavg.optimization.batches import UserRows


def rows_of(x, y):
    """`UserRows` over a pair of arrays."""
    return UserRows.of(tf.convert_to_tensor(x), tf.convert_to_tensor(y))


def batch_of(x, y):
    """A `Batch` in which every row counts."""
    x = tf.convert_to_tensor(x)
    return Batch(x, tf.convert_to_tensor(y), tf.ones([tf.shape(x)[0]], x.dtype))


def toy_user(rng, num_rows, num_inputs=4, num_classes=3):
    """Random float32 features and labels."""
    x = rng.normal(size=[num_rows, num_inputs]).astype(np.float32)
    return x, rng.integers(num_classes, size=[num_rows]).astype(np.int32)


def toy_store(path, sizes):
    """A store of users with so many random rows to adapt on, and two beside them."""
    rng = np.random.default_rng(5)
    users = [
        User(Rows(*toy_user(rng, size)), Rows(*toy_user(rng, 2))) for size in sizes
    ]
    return UserStore.write(path, users, Description("toy", num_classes=3))


def relative_error(actual, expected):
    """Largest difference over the largest entry of `expected`, all tensors at once."""
    actual = np.concatenate([np.asarray(t, np.float64).ravel() for t in actual])
    expected = np.concatenate([np.asarray(t, np.float64).ravel() for t in expected])
    return np.abs(actual - expected).max() / np.abs(expected).max()


def told_tensorboard(directory):
    """What TensorBoard's files hold: the value told last by tag and step."""
    found = EventAccumulator(str(directory), {"scalars": 0}, purge_orphaned_data=False)
    found.Reload()
    return {
        (tag, event.step): event.value
        for tag in found.Tags()["scalars"]
        for event in found.Scalars(tag)
    }

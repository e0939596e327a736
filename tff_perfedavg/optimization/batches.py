"""A user's rows as tensors, and the batches drawn from them.

All draws are stateless: a batch depends on (seed, round, user, step, role) and
on nothing else, so the layout of a simulation never changes its result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Batch

# Fixed, since the generator TensorFlow picks by itself depends on the device.
_ALGORITHM = "philox"


@dataclasses.dataclass(frozen=True)
class UserRows:
    """One split of one user's data, wherever the rows are kept.

    Attributes:
      num_rows: int32 scalar tensor.
      take: from int32 `[k]` row numbers, each in [0, num_rows), to the pair
        (x `[k, ...]`, y `[k, ...]`).
    """

    num_rows: tf.Tensor
    take: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def seed_pair(seed: int) -> list[int]:
    """Returns the pair of int32 that stands for a run's seed, 0 <= seed < 2**62."""
    low, high = seed & 0x7FFFFFFF, seed >> 31
    if seed < 0 or high > 0x7FFFFFFF:
        raise errors.ConfigError(
            f"seed is {seed}; it must be a whole number from 0 to 2**62 - 1."
        )
    return [low, high]


def user_key(seed: tf.Tensor, round_number: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
    """Returns the int32 `[2]` key of one user's draws in one round.

    Args:
      seed: int32 `[2]`, the run's seed.
      round_number: int32 scalar.
      user: int32 scalar, the user's number in the population.
    """
    return _fold_in(_fold_in(seed, round_number), user)


def draw_batches(
    rows: UserRows, key: tf.Tensor, step: tf.Tensor, batch_sizes: Sequence[int]
) -> tuple[Batch, ...]:
    """Draws one step's batches, one per role, from a fresh shuffle of the rows.

    The roles take consecutive slices of the shuffle, so a step's batches are
    disjoint, hence independent samples of the user's distribution, whenever the
    user has rows enough. A user with fewer goes round the shuffle again: its
    batches overlap, but within a batch no row counts twice; a batch larger than
    the user's rows is padded and masked.

    Args:
      rows: the user's rows; there must be at least one.
      key: int32 `[2]` from `user_key`.
      step: int32 scalar, the local step.
      batch_sizes: rows of each role's batch, in the order of the roles.

    Returns:
      One `Batch` for each entry of `batch_sizes`.
    """
    total = sum(batch_sizes)
    bits = tf.random.stateless_uniform(
        tf.reshape(rows.num_rows, [1]),
        _fold_in(key, step),
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg=_ALGORITHM,
    )
    _, shuffled = tf.math.top_k(bits, k=tf.minimum(total, rows.num_rows))
    positions = tf.range(total) % rows.num_rows
    chosen = tf.ensure_shape(tf.gather(shuffled, positions), [total])
    x, y = rows.take(chosen)
    batches = []
    offset = 0
    for size in batch_sizes:
        piece = slice(offset, offset + size)
        mask = tf.cast(tf.range(size) < rows.num_rows, x.dtype)
        batches.append(Batch(x[piece], y[piece], mask))
        offset += size
    return tuple(batches)


def all_rows(rows: UserRows) -> Batch:
    """Returns every row of the user as one batch."""
    x, y = rows.take(tf.range(rows.num_rows))
    return Batch(x, y, tf.ones([rows.num_rows], x.dtype))


def _fold_in(key: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(
        key, tf.cast(number, tf.int32), alg=_ALGORITHM
    )

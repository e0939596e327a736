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


# From the int32 scalar step number to the batches of that step, one per role.
DrawBatches = Callable[[tf.Tensor], Sequence[Batch]]


@dataclasses.dataclass(frozen=True)
class UserRows:
    """One split of one user's data, or of several users', wherever it is kept.

    Looking rows up is in parts, so that a loop over batches need repeat the reading of
    features alone.

    Attributes:
      num_rows: int32 scalar; for several users `[users]`.
      locate: from int32 `[..., k]` row numbers, for several users
        `[..., users, k]`, to places of the same shape. Row numbers are in
        [0, num_rows), but that a user without rows may be asked for row 0: any
        finite row will do, since it counts nowhere.
      features: from places to x, with the shape of the places in front.
      labels: likewise to y.
    """

    num_rows: tf.Tensor
    locate: Callable[[tf.Tensor], tf.Tensor]
    features: Callable[[tf.Tensor], tf.Tensor]
    labels: Callable[[tf.Tensor], tf.Tensor]

    @classmethod
    def of(cls, x: tf.Tensor, y: tf.Tensor) -> UserRows:
        """Returns one user's rows that lie in two tensors, `[rows, ...]`.

        For a user without rows these hold one row nevertheless; set `num_rows`.
        """
        return cls(
            tf.shape(x)[0],
            lambda numbers: numbers,
            lambda places: tf.gather(x, places),
            lambda places: tf.gather(y, places),
        )


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Draws the batches of a user's steps, or of several users'.

    In two parts, so that what trains several users side by side reads features where
    it uses them: between the parts they would be copied.

    Attributes:
      choose: from the int32 scalar step number to places, labels and mask of that
        step's batches, one triple per role.
      features: from places to x.
    """

    choose: Callable[[tf.Tensor], list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]
    features: Callable[[tf.Tensor], tf.Tensor]

    def read(
        self, chosen: Sequence[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
    ) -> list[Batch]:
        """Returns the batches chosen."""
        read = []
        for places, y, mask in chosen:
            x = self.features(places)
            read.append(Batch(x, y, tf.cast(mask, x.dtype)))
        return read

    def __call__(self, step: tf.Tensor) -> list[Batch]:
        return self.read(self.choose(step))


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
      user: int32 scalar, the user's number in the population; for several users
        `[users]`, which gives keys `[users, 2]`.
    """
    round_key = tf.random.experimental.stateless_fold_in(
        seed, tf.cast(round_number, tf.int32), alg=_ALGORITHM
    )
    # As folding the user in, too, but the random half is the same for all users.
    half = tf.random.stateless_uniform(
        [], round_key, minval=None, maxval=None, dtype=tf.int32, alg=_ALGORITHM
    )
    user = tf.cast(user, tf.int32)
    return tf.stack([tf.fill(tf.shape(user), half), user], -1)


def draw_rows(
    num_rows: tf.Tensor, key: tf.Tensor, num_steps: int, total: int
) -> tf.Tensor:
    """Draws the rows of all of a user's steps: a fresh shuffle for each.

    A step's roles take consecutive slices of its shuffle, so that its batches are
    disjoint, hence independent samples of the user's distribution, whenever the user
    has rows enough. A user with fewer goes round the shuffle again: its batches
    overlap, but within a batch no row comes twice before all have come once.

    Args:
      num_rows: int32 scalar, rows of the user.
      key: int32 `[2]` from `user_key`.
      num_steps: number of steps.
      total: rows of all roles together.

    Returns:
      int32 `[num_steps, total]` row numbers (zeros for a user without rows). A
      step's do not depend on how many steps there are, nor a role's on the roles
      behind it.
    """
    num_rows = tf.maximum(num_rows, 1)
    bits = tf.random.stateless_uniform(
        tf.stack([num_steps, num_rows]),
        key,
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg=_ALGORITHM,
    )
    _, shuffled = tf.math.top_k(bits, k=tf.minimum(total, num_rows))
    chosen = tf.gather(shuffled, tf.range(total) % num_rows, axis=1)
    return tf.ensure_shape(chosen, [num_steps, total])


def batch_source(
    rows: UserRows, key: tf.Tensor, num_steps: int, batch_sizes: Sequence[int]
) -> BatchSource:
    """Returns the batches of a user's steps, drawn by `draw_rows`.

    A batch larger than the user's rows is padded to its size and masked.

    Args:
      rows: one user's rows, or several users'.
      key: int32 `[2]` from `user_key`, or `[users, 2]`.
      num_steps: steps there will be.
      batch_sizes: rows of each role's batch, in the order of the roles.
    """
    total = sum(batch_sizes)

    def draw_one(num_rows_and_key):
        return draw_rows(*num_rows_and_key, num_steps, total)

    if rows.num_rows.shape.rank:
        # `[steps, users, total]`, so that a step's rows lie together.
        table = tf.transpose(
            tf.map_fn(
                draw_one,
                (rows.num_rows, key),
                fn_output_signature=tf.TensorSpec([num_steps, total], tf.int32),
            ),
            [1, 0, 2],
        )
    else:
        table = draw_one((rows.num_rows, key))
    # All but the features is small as a rule, and got ready here for all steps at
    # once: inside the loop over steps every operation counts.
    places = rows.locate(table)
    axis = table.shape.rank - 1
    masks = [
        tf.cast(tf.range(size) < rows.num_rows[..., tf.newaxis], tf.float32)
        for size in batch_sizes
    ]
    chosen = list(
        zip(
            tf.split(places, batch_sizes, axis),
            tf.split(rows.labels(places), batch_sizes, axis),
            masks,
            strict=True,
        )
    )

    def choose(step):
        return [(tf.gather(p, step), tf.gather(y, step), mask) for p, y, mask in chosen]

    return BatchSource(choose, rows.features)


def some_rows(rows: UserRows, key: tf.Tensor, most: int) -> UserRows:
    """Returns `most` of one user's rows, or all where it has fewer.

    Args:
      rows: one user's rows.
      key: int32 `[2]` from `user_key`.
      most: how many, at least 1. Of two numbers, the smaller one's rows are among the
        larger one's.
    """
    chosen = draw_rows(rows.num_rows, key, 1, most)[0]
    return dataclasses.replace(
        rows,
        num_rows=tf.minimum(rows.num_rows, most),
        locate=lambda numbers: rows.locate(tf.gather(chosen, numbers)),
    )


def all_rows(rows: UserRows) -> Batch:
    """Returns every row of the user as one batch."""
    places = rows.locate(tf.range(rows.num_rows))
    x = rows.features(places)
    return Batch(x, rows.labels(places), tf.ones([rows.num_rows], x.dtype))

"""Stateless minibatch sampling: users' rows as tensors, and batches drawn from them.

All draws are stateless: a batch depends on (seed, round, user, step, role) and
on nothing else, so the form of client data never changes a result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.models.model import Batch

# Fixed, since the generator TensorFlow picks by itself depends on the device.
ALGORITHM = "philox"
# Sets the draw of batches' sizes apart from that of rows.
_SIZES = 1


# From the int32 scalar step number to the batches of that step, one per role.
DrawBatches = Callable[[tf.Tensor], Sequence[Batch]]


@dataclasses.dataclass(frozen=True)
class UserRows:
    """Random access to one split of the rows of a user, or of several users.

    Wherever the rows are kept, looking them up is in parts, so that a loop over batches
    need repeat the reading of features alone.

    Attributes:
      num_rows: int32 scalar; for several users `[users]`.
      locate: from int32 `[..., k]` row numbers, for several users
        `[..., users, k]`, to places of the same shape. Row numbers are in
        [0, num_rows), but that a user without rows may be asked for row 0: any
        finite row will do, since it counts nowhere.
      features: from places to x, with the shape of the places in front.
      labels: likewise to y.
      num_steps: int32, shaped like `num_rows`: how many of its local steps a user has
        time for, from 1; None for all.
    """

    num_rows: tf.Tensor
    locate: Callable[[tf.Tensor], tf.Tensor]
    features: Callable[[tf.Tensor], tf.Tensor]
    labels: Callable[[tf.Tensor], tf.Tensor]
    num_steps: tf.Tensor | None = None

    @classmethod
    def of(cls, x: tf.Tensor, y: tf.Tensor) -> UserRows:
        """Returns the rows of one user that are held in two tensors.

        For a user without rows these hold one row nevertheless; set `num_rows`.

        Args:
          x: `[rows, ...]` features, floating point.
          y: `[rows, ...]` labels.
        """
        return cls(
            tf.shape(x)[0],
            lambda numbers: numbers,
            lambda places: tf.gather(x, places),
            lambda places: tf.gather(y, places),
        )


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Sampler of the batches of a user's steps, or of several users'.

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
      user: int32 scalar, the user's number in the store; for several users `[users]`,
        which gives keys `[users, 2]`.
    """
    round_key = tf.random.experimental.stateless_fold_in(
        seed, tf.cast(round_number, tf.int32), alg=ALGORITHM
    )
    # As folding the user in, too, but the random half is the same for all users.
    half = tf.random.stateless_uniform(
        [], round_key, minval=None, maxval=None, dtype=tf.int32, alg=ALGORITHM
    )
    user = tf.cast(user, tf.int32)
    return tf.stack([tf.fill(tf.shape(user), half), user], -1)


def draw_rows(
    num_rows: tf.Tensor, key: tf.Tensor, num_steps: int, places: tf.Tensor
) -> tf.Tensor:
    """Samples rows without replacement, by a fresh shuffle for each of a user's steps.

    Args:
      num_rows: int32 scalar, rows of the user.
      key: int32 `[2]` from `user_key`.
      num_steps: number of steps.
      places: int32 `[count]` places in the shuffle, from 0. One behind the user's last
        row goes round again, so that no row comes twice before all have come once.

    Returns:
      int32 `[num_steps, count]` row numbers (zeros for a user without rows). A step's
      do not depend on how many steps there are.
    """
    count = places.shape[0]
    num_rows = tf.maximum(num_rows, 1)
    bits = tf.random.stateless_uniform(
        tf.stack([num_steps, num_rows]),
        key,
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg=ALGORITHM,
    )
    _, shuffled = tf.math.top_k(bits, k=tf.minimum(count, num_rows))
    chosen = tf.gather(shuffled, places % num_rows, axis=1)
    return tf.ensure_shape(chosen, [num_steps, count])


def rows_per_role(num_rows: tf.Tensor, batch_sizes: Sequence[int]) -> tf.Tensor:
    """Returns the batch size of each role, given a user's number of rows.

    The batch sizes, where the user has rows enough for all roles together. With fewer,
    as many as leave the batches disjoint, shared out in proportion, but at least one:
    for equal sizes `max(1, num_rows // roles)`. Batches that share rows would not be
    independent samples, and the mean meta-gradient not that of the user's loss.

    Args:
      num_rows: int32 `[...]`.
      batch_sizes: rows of each role's batch.

    Returns:
      int32 `[..., roles]`; zeros for a user without rows.
    """
    roles, total = len(batch_sizes), sum(batch_sizes)
    num_rows = num_rows[..., tf.newaxis]
    # One row each, and of the rest a share. In int64, for the product.
    rest = tf.cast(tf.maximum(num_rows - roles, 0), tf.int64)
    more = tf.constant(batch_sizes, tf.int64) - 1
    shared = 1 + rest * more // max(total - roles, 1)
    counts = tf.where(
        num_rows >= total, tf.constant(batch_sizes), tf.cast(shared, tf.int32)
    )
    return tf.minimum(counts, num_rows)


def random_masks(
    counts: tf.Tensor, key: tf.Tensor, num_steps: int, batch_size: int
) -> tf.Tensor:
    """Draws masks of random batch sizes, uniform from 1 to all rows, for each step.

    Args:
      counts: int32 scalar, rows the batch would have; for several users `[users]`.
      key: int32 `[2]` from `user_key`, or `[users, 2]`.
      num_steps: number of steps.
      batch_size: places in the batch.

    Returns:
      float32 `[num_steps, batch_size]`, for several users
      `[num_steps, users, batch_size]`: 1 for a row that counts. A step's does not
      depend on how many steps there are.
    """

    def sizes(of_user):
        count, key = of_user
        key = tf.random.experimental.stateless_fold_in(key, _SIZES, alg=ALGORITHM)
        drawn = tf.random.stateless_uniform([num_steps], key, alg=ALGORITHM)
        count = tf.cast(count, tf.float32)
        # Rounding may take a product up to the count itself.
        return tf.minimum(tf.floor(drawn * count) + 1.0, count)

    if counts.shape.rank:
        of_step = tf.TensorSpec([num_steps], tf.float32)
        drawn = tf.map_fn(sizes, (counts, key), fn_output_signature=of_step)
        drawn = tf.transpose(drawn)
    else:
        drawn = sizes((counts, key))
    numbers = tf.range(batch_size, dtype=tf.float32)
    return tf.cast(numbers < drawn[..., tf.newaxis], tf.float32)


def batch_source(
    rows: UserRows,
    key: tf.Tensor,
    num_steps: int,
    batch_sizes: Sequence[int],
    random_roles: Sequence[int] = (),
) -> BatchSource:
    """Returns a sampler of disjoint batches for a user's steps, drawn by `draw_rows`.

    A step's roles take consecutive slices of its shuffle, so that its batches are
    disjoint, hence independent samples of the user's distribution, unless the user has
    fewer rows than there are roles. They have `rows_per_role` rows, and are padded to
    their size and masked where that is less.

    Args:
      rows: one user's rows, or several users'.
      key: int32 `[2]` from `user_key`, or `[users, 2]`.
      num_steps: steps there will be.
      batch_sizes: rows of each role's batch, in the order of the roles.
      random_roles: numbers of the roles of whose rows a random number counts in each
        step, as `random_masks` draws it.
    """
    total = sum(batch_sizes)
    counts = rows_per_role(rows.num_rows, batch_sizes)
    in_shuffle, mask = _places(counts, batch_sizes)

    def draw_one(of_user):
        num_rows, key, places = of_user
        return draw_rows(num_rows, key, num_steps, places)

    of_users = (rows.num_rows, key, in_shuffle)
    if rows.num_rows.shape.rank:
        of_user = tf.TensorSpec([num_steps, total], tf.int32)
        tables = tf.map_fn(draw_one, of_users, fn_output_signature=of_user)
        # `[steps, users, total]`, so that a step's rows lie together.
        table = tf.transpose(tables, [1, 0, 2])
    else:
        table = draw_one(of_users)
    # All but the features is small as a rule, and got ready here for all steps at
    # once: inside the loop over steps every operation counts.
    places = rows.locate(table)
    axis = table.shape.rank - 1
    masks = [functools.partial(_same, m) for m in tf.split(mask, batch_sizes, -1)]
    for role in random_roles:
        drawn = random_masks(counts[..., role], key, num_steps, batch_sizes[role])
        masks[role] = functools.partial(tf.gather, drawn)
    chosen = list(
        zip(
            tf.split(places, batch_sizes, axis),
            tf.split(rows.labels(places), batch_sizes, axis),
            masks,
            strict=True,
        )
    )

    def choose(step):
        return [(tf.gather(p, step), tf.gather(y, step), m(step)) for p, y, m in chosen]

    return BatchSource(choose, rows.features)


def _places(counts: tf.Tensor, batch_sizes: Sequence[int]):
    """Returns where in a shuffle batches' rows lie, and which of them count.

    Of every place in the batches, one behind the other: int32 and float32
    `[..., total]` for counts `[..., roles]`.
    """
    # The place's role, and its number within the role's batch.
    roles = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    numbers = np.concatenate([np.arange(size) for size in batch_sizes]).astype(np.int32)
    count = tf.gather(counts, roles, axis=-1)
    mask = tf.cast(numbers < count, tf.float32)
    starts = tf.gather(tf.cumsum(counts, -1, exclusive=True), roles, axis=-1)
    return starts + tf.minimum(numbers, tf.maximum(count - 1, 0)), mask


def _same(mask: tf.Tensor, _) -> tf.Tensor:
    """The mask of every step."""
    return mask


def some_rows(rows: UserRows, key: tf.Tensor, most: int) -> UserRows:
    """Subsamples at most `most` of one user's rows, without replacement.

    Args:
      rows: one user's rows.
      key: int32 `[2]` from `user_key`.
      most: how many, at least 1. Of two numbers, the smaller one's rows are among the
        larger one's.
    """
    chosen = draw_rows(rows.num_rows, key, 1, tf.range(most))[0]
    return dataclasses.replace(
        rows,
        num_rows=tf.minimum(rows.num_rows, most),
        locate=lambda numbers: rows.locate(tf.gather(chosen, numbers)),
    )


def some_rows_per_class(rows: UserRows, key: tf.Tensor, most: int) -> UserRows:
    """Subsamples one user's rows stratified by class: at most `most` of each class.

    Args:
      rows: one user's rows, whose labels are classes.
      key: int32 `[2]` from `user_key`.
      most: how many of a class, at least 1. Of two numbers, the smaller one's rows are
        among the larger one's.
    """
    bits = tf.random.stateless_uniform(
        [rows.num_rows], key, minval=None, maxval=None, dtype=tf.int32, alg=ALGORITHM
    )
    shuffled = tf.argsort(bits)
    labels = rows.labels(rows.locate(shuffled))
    # Class by class, each in the order shuffled: a row's rank is its place behind the
    # first of its class.
    by_class = tf.argsort(labels, stable=True)
    sorted_labels = tf.gather(labels, by_class)
    rank = tf.range(rows.num_rows) - tf.searchsorted(sorted_labels, sorted_labels)
    chosen = tf.gather(shuffled, tf.boolean_mask(by_class, rank < most))
    # Row 0 of a user without rows is asked for; any will do.
    padded = tf.concat([chosen, [0]], 0)
    return dataclasses.replace(
        rows,
        num_rows=tf.size(chosen),
        locate=lambda numbers: rows.locate(tf.gather(padded, numbers)),
    )


def all_rows(rows: UserRows) -> Batch:
    """Returns every row of the user as one batch."""
    places = rows.locate(tf.range(rows.num_rows))
    x = rows.features(places)
    return Batch(x, rows.labels(places), tf.ones([rows.num_rows], x.dtype))

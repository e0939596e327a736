"""Fresh labels: N-way classification tasks drawn from a user's rows, round by round.

Where labels are users' own, the fixed orders of a few hundred users are too few tasks:
a model can learn them by heart. A user that trains takes N of its classes by lot, in an
order drawn by lot, as episodes of few-shot learning are drawn (Vinyals et al., 2016,
arXiv 1606.04080, sec. 4.1). One draw holds for all steps and roles of a user's
round, so that its support, query and Hessian batches speak of one task. Graph code.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tff_perfedavg.optimization.batches import ALGORITHM, UserRows

# Sets the draw of labels apart from those of rows and of batches' sizes.
_LABELS = 2


def with_fresh_labels(rows: UserRows, key: tf.Tensor, num_labels: int) -> UserRows:
    """Draws an N-way task: a user's rows of `num_labels` classes, labels permuted.

    Every choice of classes and every order of them is equally likely. A user of fewer
    classes keeps all of them, under labels drawn from all `num_labels`.

    Args:
      rows: one user's rows, or several users'; labels are whole numbers of at least 0.
      key: int32 `[2]` from `batches.user_key`, or `[users, 2]`.
      num_labels: labels afterwards are 0 to num_labels - 1.
    """
    if rows.num_rows.shape.rank:
        return _of_several(rows, key, num_labels)
    given = rows.labels(rows.locate(tf.range(rows.num_rows)))
    label_of = _draw(given, key, num_labels)
    kept = tf.where(tf.gather(label_of, given) >= 0)[:, 0]
    # Row 0 of a user without rows is asked for; any will do.
    padded = tf.concat([tf.cast(kept, tf.int32), [0]], 0)

    def labels(places):
        found = rows.labels(places)
        # A user without rows is asked for another's.
        known = tf.minimum(found, tf.size(label_of) - 1)
        return tf.cast(tf.maximum(tf.gather(label_of, known), 0), found.dtype)

    return dataclasses.replace(
        rows,
        num_rows=tf.size(kept),
        locate=lambda numbers: rows.locate(tf.gather(padded, numbers)),
        labels=labels,
    )


def _of_several(rows: UserRows, key: tf.Tensor, num_labels: int) -> UserRows:
    """As `with_fresh_labels`, of several users, whose tables are padded to one size."""
    most = tf.reduce_max(rows.num_rows)
    numbers = tf.range(most)
    # `[users, most]`; behind a user's last row stand others', which do not count.
    everything = rows.locate(tf.tile(numbers[tf.newaxis], [tf.size(rows.num_rows), 1]))
    given = rows.labels(everything)
    own = numbers < rows.num_rows[:, tf.newaxis]
    num_classes = tf.reduce_max(tf.where(own, given, 0)) + 1

    def draw_one(of_user):
        labels, count, key = of_user
        label_of = _draw(labels[:count], key, num_labels)
        missing = num_classes - tf.size(label_of)
        return tf.pad(label_of, [[0, missing]], constant_values=-1)

    label_of = tf.map_fn(
        draw_one,
        (given, rows.num_rows, key),
        fn_output_signature=tf.TensorSpec([None], tf.int32),
    )
    drawn = tf.gather(label_of, tf.where(own, given, 0), batch_dims=1)
    kept = tf.logical_and(own, drawn >= 0)
    # Those kept first, in their order.
    order = tf.argsort(tf.cast(tf.logical_not(kept), tf.int32), axis=1, stable=True)

    def locate(numbers):
        # `[..., users, k]`
        users = tf.range(tf.size(rows.num_rows))[:, tf.newaxis]
        users = tf.broadcast_to(users, tf.shape(numbers))
        return rows.locate(tf.gather_nd(order, tf.stack([users, numbers], -1)))

    def labels(places):
        found = rows.labels(places)
        users = tf.range(tf.size(rows.num_rows))[:, tf.newaxis]
        users = tf.broadcast_to(users, tf.shape(places))
        # A user without rows is asked for another's.
        known = tf.minimum(found, num_classes - 1)
        fresh = tf.gather_nd(label_of, tf.stack([users, known], -1))
        return tf.cast(tf.maximum(fresh, 0), found.dtype)

    return dataclasses.replace(
        rows,
        num_rows=tf.reduce_sum(tf.cast(kept, tf.int32), 1),
        locate=locate,
        labels=labels,
    )


def _draw(given: tf.Tensor, key: tf.Tensor, num_labels: int) -> tf.Tensor:
    """Returns the label of each of a user's classes, -1 for those it leaves out.

    Args:
      given: int `[rows]`, its classes.
      key: int32 `[2]`.
      num_labels: labels there are.

    Returns:
      int32 `[classes]`, of 0 to its largest class.
    """
    given = tf.cast(given, tf.int32)
    count = tf.reduce_max(tf.concat([given, [0]], 0)) + 1
    is_held = tf.math.unsorted_segment_max(tf.ones_like(given), given, count) > 0
    key = tf.random.experimental.stateless_fold_in(key, _LABELS, alg=ALGORITHM)
    bits = tf.random.stateless_uniform(
        [num_labels + count],
        key,
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg=ALGORITHM,
    )
    # The order of the classes held, and of the labels.
    classes = tf.where(is_held)[:, 0]
    classes = tf.gather(classes, tf.argsort(tf.gather(bits[num_labels:], classes)))
    chosen = classes[:num_labels]
    labels = tf.argsort(bits[:num_labels])[: tf.size(chosen)]
    none = tf.fill([count], -1)
    return tf.tensor_scatter_nd_update(none, chosen[:, tf.newaxis], labels)

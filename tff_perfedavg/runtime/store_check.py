"""Checksum comparison of a remote worker's user store with this machine's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore

if TYPE_CHECKING:
    from tff_perfedavg.runtime.remote_runtime import Connection

_CHUNK_BYTES = 1 << 20
# Of a worker's error, which may be a page long.
_SHOWN = 300


def store_check(store: UserStore) -> Callable[[Connection], None]:
    """Returns a check for `WorkerPool` that a worker has a store, byte for byte.

    Workers read rows from the path that the store has here. Each reads its files whole
    and hashes them (FarmHash, 64 bits, of chunks and of their hashes), as this machine
    does once: some seconds a gigabyte.

    Args:
      store: the store.

    Returns:
      A function from a worker, which raises `DataError`, naming worker and path, if the
      store is missing there or another.
    """
    # Here, before any worker is asked, and once.
    expected = tf.function(lambda: _hashes(store))().numpy()

    @tff.tensorflow.computation
    def hashes():
        return _hashes(store)

    def check(worker: Connection) -> None:
        try:
            found = worker.run(hashes, None)
        except errors.WorkerError:
            raise
        except Exception as e:
            raise errors.DataError(
                f"The worker at {worker.address} cannot read a store at {store.path}; "
                f"copy it there, to the same path. It says: {str(e)[:_SHOWN]}"
            ) from e
        if not np.array_equal(found, expected):
            raise errors.DataError(
                f"The worker at {worker.address} has another store at {store.path} "
                "than this machine; copy this one there."
            )

    return check


def _hashes(store: UserStore) -> tf.Tensor:
    """Hashes of the store's files, uint8 `[files, 8]`. Graph code."""
    header = tf.io.decode_raw(tf.io.read_file(str(store.path / "store.json")), tf.uint8)
    contents = [header]
    for name in ("users", "features", "labels"):
        array = getattr(store, name)
        if array.size:
            contents.append(
                tf.raw_ops.ImmutableConst(
                    dtype=tf.uint8,
                    shape=[array.nbytes],
                    memory_region_name=store.file(name),
                )
            )
    return tf.stack([_hash(content) for content in contents])


def _hash(content: tf.Tensor) -> tf.Tensor:
    # Whole chunks are views of the mapped file, not copies.
    whole = tf.size(content, tf.int64) // _CHUNK_BYTES
    chunks = tf.reshape(content[: whole * _CHUNK_BYTES], [whole, _CHUNK_BYTES])
    rest = content[tf.newaxis, whole * _CHUNK_BYTES :]
    parts = tf.concat([_fingerprint(chunks), _fingerprint(rest)], 0)
    return _fingerprint(tf.reshape(parts, [1, -1]))[0]


def _fingerprint(rows: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.Fingerprint(data=rows, method="farmhash64")

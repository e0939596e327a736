"""Data preparation: partitions a data set among users and writes a user store."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterable

from tff_perfedavg import errors
from tff_perfedavg.data import catalog, division, own_labels
from tff_perfedavg.data.config import FROM_TFF, GENERATED, RAW, DataConfig
from tff_perfedavg.data.user_store import Description, User, UserStore
from tff_perfedavg.files import in_turn

# Characters of a store's name in its lock's: names have 255 bytes at most.
_MOST_NAMED = 50


def prepare(
    config: DataConfig,
    path: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
) -> UserStore:
    """Loads a data set, partitions it among users and writes the store.

    Args:
      config: which data set, divided how.
      path: where the store will be.
      data_dir: where the data set's files may be; by default
        `TFF_PERFEDAVG_DATA_DIR`.

    Raises:
      DataError: if the data set is not to be had, the partition cannot be met, or
        the store cannot be written.
      ModelError: if the weights of the network that makes features are not installed.
    """
    description, make_users = _load(config, data_dir)
    if config.own_labels:
        description, make_users = own_labels.relabel(description, make_users, config)
    if config.features != RAW:
        # Loads TensorFlow, which raw rows do without.
        from tff_perfedavg.experiments.assemble import pretrained_features as body

        description, make_users = body.embed(description, make_users, config)
    return UserStore.write(path, make_users(), description)


def _load(
    config: DataConfig, data_dir: str | os.PathLike | None
) -> tuple[Description, Callable[[], Iterable[User]]]:
    """Returns what a data set's rows mean, and a function that makes its users."""
    if config.dataset in GENERATED:
        return division.generate(config)[0], lambda: division.generate(config)[1]
    if config.dataset in FROM_TFF:
        # Loads TFF, which the other data sets do without.
        from tff_perfedavg.federated import tff_datasets

        description, _ = tff_datasets.load(config, data_dir)
        return description, lambda: tff_datasets.load(config, data_dir)[1]
    data = catalog.load(config.dataset, data_dir)
    return division.describe(data, config), lambda: division.divide(data, config)


def prepare_once(
    config: DataConfig,
    path: pathlib.Path,
    data_dir: str | os.PathLike | None = None,
) -> UserStore:
    """Opens the store at `path`, or prepares it if there is none.

    Of processes that need the same store one prepares it, and the others wait and open
    what it wrote.

    Args:
      config: which data set, divided how.
      path: where the store is, or will be.
      data_dir: as for `prepare`.

    Raises:
      DataError: if the store at `path` is divided in another way; and as `prepare`.
    """
    if path.exists():
        return _open_prepared(config, path)

    def tell():
        print(f"Waiting for another process that prepares {path}.", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        lock = path.parent / f".{path.name[:_MOST_NAMED]}.lock"
        try:
            stack.enter_context(in_turn(lock, tell))
        except OSError as e:
            raise errors.DataError(
                f"{path} could not be written ({e.strerror or e}); choose another "
                "directory for the runs."
            ) from e
        if not path.exists():
            try:
                return prepare(config, path, data_dir)
            except errors.DataError as e:
                # Another was first, on a file system without locks.
                if not isinstance(e.__cause__, FileExistsError):
                    raise
    return _open_prepared(config, path)


def _open_prepared(config: DataConfig, path: pathlib.Path) -> UserStore:
    store = UserStore.open(path)
    found = store.description.provenance
    if found != str(config):
        raise errors.DataError(
            f"{path} exists already and is divided by {found}, not by {config}. Choose "
            "another directory for the runs, or name the store to train on (--store)."
        )
    return store

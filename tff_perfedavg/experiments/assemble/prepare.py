"""From a data set's name to a user store, its summary and its picture."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys

import matplotlib.figure
import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.data import catalog, division, heterogeneity
from tff_perfedavg.data.config import FROM_TFF, GENERATED, DataConfig
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.files import atomic_write, in_turn

_MOST_USERS_DRAWN = 60
# Characters of a store's name in its lock's: names have 255 bytes at most.
_MOST_NAMED = 50


def prepare(
    config: DataConfig,
    path: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
) -> UserStore:
    """Loads a data set, divides it and writes the store.

    Args:
      config: which data set, divided how.
      path: where the store will be.
      data_dir: where the data set's files may be; by default
        `TFF_PERFEDAVG_DATA_DIR`.

    Raises:
      DataError: if the data set is not to be had, the partition cannot be met, or
        the store cannot be written.
    """
    if config.dataset in GENERATED:
        description, users = division.generate(config)
    elif config.dataset in FROM_TFF:
        # Loads TFF, which the other data sets do without.
        from tff_perfedavg.federated import tff_datasets

        description, users = tff_datasets.load(config, data_dir)
    else:
        data = catalog.load(config.dataset, data_dir)
        description, users = (
            division.describe(data, config),
            division.divide(data, config),
        )
    return UserStore.write(path, users, description)


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


def summary(store: UserStore) -> str:
    """Returns what `--describe` prints of a store."""
    description = store.description
    size = sum(f.stat().st_size for f in store.path.iterdir())
    seen, new = len(store.training_users), len(store.new_users)
    users = np.asarray(store.users)
    adaptation = users[:, 1] - users[:, 0]
    evaluation = users[:, 2] - users[:, 1]
    lines = [
        f"{store.path}: {description.name}, {size / 1e6:.1f} MB",
        f"divided by            {description.provenance}",
        f"features              {store.feature_dtype} {list(store.input_shape)}",
        f"labels                {store.label_dtype} {list(store.label_shape)}, "
        + (
            "no classes"
            if description.num_classes is None
            else f"{description.num_classes} classes"
        ),
        f"seen and new users    {seen} and {new}",
        f"adaptation rows       {adaptation.min()} to {adaptation.max()} per user",
        f"evaluation rows       {evaluation.min()} to {evaluation.max()} per user",
        str(heterogeneity.summarize(store)),
    ]
    return "\n".join(lines)


def draw(store: UserStore, path: pathlib.Path) -> None:
    """Draws how many rows of each class the first users hold, as a PNG."""
    found = heterogeneity.summarize(store)
    shown = min(store.num_users, _MOST_USERS_DRAWN)
    numbers = np.arange(shown)
    figure = matplotlib.figure.Figure(figsize=(8, 4))
    axes = figure.subplots()
    if found.histograms is None:
        axes.bar(numbers, found.sizes[:shown])
    else:
        names = store.description.class_names or range(found.histograms.shape[1])
        bottom = np.zeros([shown])
        colours = matplotlib.colormaps["tab20"].resampled(20)
        for column, name in enumerate(names):
            rows = found.histograms[:shown, column]
            colour = colours(column % 20)
            axes.bar(numbers, rows, bottom=bottom, label=str(name), color=colour)
            bottom += rows
        if len(names) <= 20:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel(f"user (the first {shown} of {store.num_users})")
    axes.set_ylabel("rows (number)")
    axes.set_title(f"{store.description.name}: who holds what")
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)

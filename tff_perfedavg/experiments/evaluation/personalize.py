"""Every user's own adapted weights, saved and read back."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.data.verified_directory import read_header, verify
from tff_perfedavg.files import atomic_directory, sha256, sync_file
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization import batches
from tff_perfedavg.optimization.adaptation import adapt, adaptation_batches
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.progress import progress

_FORMAT_VERSION = 1
_AGAIN = "personalize again"
_JSON, _WEIGHTS, _USERS = "personalized.json", "weights.bin", "users.npy"


class PersonalizedStore:
    """Adapted weights of users on disk, memory-mapped: one row of numbers each.

    A directory: `personalized.json` (format version, shapes, what they were adapted
    from and how, SHA-256 of the rest), `users.npy` (int64 `[users]`, ascending) and
    `weights.bin` (float32 `[users, weights]`).
    """

    def __init__(self, path: pathlib.Path, header: dict[str, Any]):
        """Use `PersonalizedStore.open` or `personalize`."""
        self.path = path
        self._header = header
        self.users = np.load(path / _USERS)
        size = sum(int(np.prod(shape)) for shape in header["shapes"])
        self._rows = np.memmap(
            path / _WEIGHTS, np.float32, "r", shape=(len(self.users), size)
        )

    @classmethod
    def open(cls, path: str | os.PathLike) -> PersonalizedStore:
        """Opens a store.

        Raises:
          DataError: naming the file, if it is missing, altered in size, unreadable or
            of another format version.
        """
        path = pathlib.Path(path)
        missing = (
            f"No personalized weights at {path}; write them with "
            "scripts/personalize.py."
        )
        header = read_header(
            path, _JSON, _FORMAT_VERSION, missing=missing, again=_AGAIN
        )
        return cls(path, header)

    def verify(self) -> None:
        """Reads all files and checks their hashes.

        Raises:
          DataError: naming the first file whose content has changed.
        """
        verify(self.path, self._header, again=_AGAIN)

    @property
    def provenance(self) -> dict[str, Any]:
        """The adaptation, and whatever `personalize` was told besides."""
        return self._header["provenance"]

    def weights(self, user: int) -> list[np.ndarray]:
        """Returns a user's adapted weights, float32.

        Raises:
          DataError: if there are none of this user.
        """
        place = int(np.searchsorted(self.users, user))
        if place == len(self.users) or self.users[place] != user:
            raise errors.DataError(
                f"{self.path} has no weights of user {user}; it has "
                f"{len(self.users)} users, {self.users[0]} to {self.users[-1]}."
            )
        row, weights, offset = self._rows[place], [], 0
        for shape in self._header["shapes"]:
            size = int(np.prod(shape))
            weights.append(np.array(row[offset : offset + size]).reshape(shape))
            offset += size
        return weights


def personalize(
    model: Model,
    weights: Sequence[np.ndarray],
    population: UserStore,
    users: Sequence[int] | np.ndarray,
    config: AdaptationConfig,
    path: str | os.PathLike,
    *,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
) -> PersonalizedStore:
    """Adapts the initial model to users, as evaluation does, and keeps the results.

    Written user by user, in memory that does not grow with their number; the directory
    appears whole when the last is written. A user without adaptation rows keeps the
    initial weights.

    Args:
      model: the model.
      weights: its initial weights.
      population: the users' store.
      users: which of them.
      config: the adaptation.
      path: where the directory will be; nothing may be there.
      seed: of the adaptation's draws, if it has any.
      provenance: what else to keep, as JSON takes it.

    Raises:
      DataError: if a user is not in the population, something is at the path, a file
        is where a directory is needed, or the disk does not take it.
    """
    path = pathlib.Path(path)
    try:
        users = np.unique(np.asarray(users, np.int64))
    except OverflowError as e:
        beyond = next(u for u in users if not 0 <= u < population.num_users)
        raise errors.DataError(
            f"{population.path} has users 0 to {population.num_users - 1}; {beyond} is "
            "none."
        ) from e
    outside = users[(users < 0) | (users >= population.num_users)]
    if len(users) == 0 or len(outside):
        raise errors.DataError(
            f"{population.path} has users 0 to {population.num_users - 1}; "
            + (f"{outside[0]} is none." if len(outside) else "none was given.")
        )
    adapt_user = _build_adaptation(model, weights, config, seed)
    try:
        with atomic_directory(path) as directory:
            np.save(directory / _USERS, users)
            with (
                open(directory / _WEIGHTS, "wb") as file,
                progress(total=len(users), desc="adapting", unit="user") as bar,
            ):
                for user in users:
                    rows = population.scaled(population.adaptation(user))
                    y = np.asarray(rows.y, model.label_spec.dtype.as_numpy_dtype)
                    for tensor in adapt_user(np.int32(user), rows.x, y):
                        file.write(tensor.numpy().astype(np.float32).tobytes())
                    bar.update()
            header = {
                "format_version": _FORMAT_VERSION,
                "shapes": [list(np.shape(w)) for w in weights],
                "provenance": {
                    "adaptation": dataclasses.asdict(config),
                    "seed": seed,
                    "store": population.fingerprint,
                    **(provenance or {}),
                },
                "files": {n: _facts(directory / n) for n in (_USERS, _WEIGHTS)},
            }
            (directory / _JSON).write_text(json.dumps(header, indent=1))
            for name in (_USERS, _WEIGHTS, _JSON):
                sync_file(directory / name)
    except FileExistsError as e:
        raise errors.DataError(
            f"{path} exists already; remove it or choose another place."
        ) from e
    except NotADirectoryError as e:
        raise errors.DataError(
            f"{path} could not be written: a file is where a directory is needed; "
            "choose another place."
        ) from e
    except OSError as e:
        raise errors.DataError(
            f"{path} could not be written ({e.strerror or e}); nothing of it was kept. "
            "Free some space or choose another disk."
        ) from e
    return PersonalizedStore.open(path)


def _build_adaptation(
    model: Model, weights: Sequence[np.ndarray], config: AdaptationConfig, seed: int
):
    seed_pair, adaptation = batches.seed_pair(seed), config.build()

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.int32),
            model.input_spec,
            model.label_spec,
        ]
    )
    def adapt_user(user, x, y):
        adapted, _ = adapt(
            model.batch_loss,
            weights,
            adaptation_batches(
                batches.UserRows.of(x, y), tf.constant(seed_pair), user, adaptation
            ),
            adaptation,
            lambda _: tf.zeros([]),
        )
        return adapted

    return adapt_user


def _facts(path: pathlib.Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}

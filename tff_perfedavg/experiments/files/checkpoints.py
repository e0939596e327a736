"""Checkpoints of a run's state, verified by hash, for resuming.

A checkpoint is one file, `state_0000000120.ckpt`: a magic word, the SHA-256 of the
rest, and the rest, an `.npz` of the state's tensors and a JSON header. It appears whole
or not at all, and a file that is cut short or altered is known by its hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_federated as tff
import tree

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write

_MAGIC = b"PFACKPT1"
_HASH_BYTES = 32


class Saved(NamedTuple):
    """A checkpoint as read from disk.

    Attributes:
      path: where it is.
      version: its number.
      leaves: the state's tensors, numbers and strings, as arrays.
      notes: what was saved beside the state.
    """

    path: pathlib.Path
    version: int
    leaves: list[np.ndarray]
    notes: dict[str, Any]

    def state(self, structure: Any) -> Any:
        """Returns the state.

        Args:
          structure: a state like the one that was saved.

        Raises:
          CheckpointError: if it is the state of another program.
        """
        wanted = [_as_array(leaf) for leaf in tree.flatten(structure)]
        if [_kind(a) for a in self.leaves] != [_kind(a) for a in wanted]:
            raise errors.CheckpointError(
                f"{self.path} holds the state of another program than this one."
            )
        return tree.unflatten_as(structure, [_as_leaf(a) for a in self.leaves])


class CheckpointManager(tff.program.ProgramStateManager):
    """A checkpoint manager with the interface of `tff.program.ProgramStateManager`.

    Unlike `tff.program.FileProgramStateManager`, a save is on disk when it returns, a
    damaged version is told from a whole one, and `latest_whole` walks back to one
    that is whole.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 3):
        """Takes a directory, which need not be there yet.

        Args:
          directory: of this run alone.
          keep: how many of the newest versions are kept, at least 1.
        """
        if keep < 1:
            raise errors.ConfigError(
                f"checkpoints_kept is {keep}; it must be 1 or more."
            )
        self._directory = directory
        self._keep = keep

    def path(self, version: int) -> pathlib.Path:
        """Returns a version's path."""
        return self._directory / f"state_{version:010d}.ckpt"

    def versions(self) -> list[int]:
        """Returns the versions on disk, whole or not, in ascending order."""
        names = self._directory.glob("state_*.ckpt")
        found = (re.fullmatch(r"state_(\d+)\.ckpt", path.name) for path in names)
        return sorted(int(match[1]) for match in found if match)

    def write(
        self,
        state: Any,
        version: int,
        notes: Mapping[str, Any] | None = None,
        *,
        is_secret: bool = False,
    ) -> None:
        """Saves a version, and removes the oldest before it beyond those to keep.

        Args:
          state: a structure of arrays, numbers and strings.
          version: for example the number of rounds done.
          notes: what else to remember, as JSON takes it.
          is_secret: let nobody but the file's owner read it.

        Raises:
          CheckpointError: if the disk does not take it, and what was there stays; or
            if there is something else in the state.
        """
        path = self.path(version)
        leaves = tree.flatten(state)
        arrays = {f"leaf_{i}": _as_array(leaf) for i, leaf in enumerate(leaves)}
        for leaf, array in zip(leaves, arrays.values(), strict=True):
            if array.dtype.hasobject:
                raise errors.CheckpointError(
                    f"{path} cannot hold a {type(leaf).__name__}; a state is made of "
                    "arrays, numbers and strings."
                )
        payload = io.BytesIO()
        np.savez(payload, notes=np.array(json.dumps(dict(notes or {}))), **arrays)
        content = payload.getvalue()
        try:
            with atomic_write(path, is_secret=is_secret) as file:
                file.write(_MAGIC + hashlib.sha256(content).digest() + content)
        except OSError as e:
            older = [v for v in self.versions() if v < version]
            raise errors.CheckpointError(
                f"{path} could not be written ({e.strerror or e}). "
                + (f"{self.path(older[-1])} is whole; f" if older else "F")
                + "ree some space and run the same command again."
            ) from e
        # Later versions are damaged, or we would not be back here.
        for old in [v for v in self.versions() if v <= version][: -self._keep]:
            self.path(old).unlink()

    def read(self, version: int) -> Saved:
        """Reads a version.

        Raises:
          CheckpointError: naming the file, if it is not there or not whole.
        """
        path = self.path(version)
        try:
            content = path.read_bytes()
        except OSError as e:
            raise errors.CheckpointError(
                f"{path} cannot be read ({e.strerror})."
            ) from e
        start = len(_MAGIC) + _HASH_BYTES
        told, rest = content[len(_MAGIC) : start], content[start:]
        if content[: len(_MAGIC)] != _MAGIC or hashlib.sha256(rest).digest() != told:
            raise errors.CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one it was written with."
            )
        with np.load(io.BytesIO(rest), allow_pickle=False) as arrays:
            notes = json.loads(str(arrays["notes"]))
            leaves = [arrays[f"leaf_{i}"] for i in range(len(arrays.files) - 1)]
        return Saved(path, version, leaves, notes)

    def latest_whole(self) -> Saved | None:
        """Reads the newest version that is whole; warns of every one that is not.

        Returns:
          None if there is no version at all.

        Raises:
          CheckpointError: if there are versions and none can be read.
        """
        versions = self.versions()
        for version in reversed(versions):
            try:
                return self.read(version)
            except errors.CheckpointError as e:
                warnings.warn(f"{e} The one before it is used.", stacklevel=2)
        if versions:
            raise errors.CheckpointError(
                f"None of the {len(versions)} checkpoints in {self._directory} can be "
                "used; begin again with --noresume."
            )
        return None

    def clear(self) -> None:
        """Removes every version."""
        for version in self.versions():
            self.path(version).unlink()

    # -------------------------------------------- tff.program.ProgramStateManager

    async def get_versions(self) -> list[int] | None:
        return self.versions() or None

    async def load(self, version: int, structure: Any) -> Any:
        if version not in self.versions():
            raise tff.program.ProgramStateNotFoundError(version)
        return self.read(version).state(structure)

    async def save(self, program_state: Any, version: int) -> None:
        if version in self.versions():
            raise tff.program.ProgramStateExistsError(
                version=version, path=str(self.path(version))
            )
        state = await tff.program.materialize_value(program_state)
        self.write(state, version)

    async def remove_all(self) -> None:
        self.clear()


def _as_array(leaf: Any) -> np.ndarray:
    array: Any = np.asarray(leaf)
    if array.ndim or array.dtype.kind not in "SU":
        return array
    # numpy drops the zeros at a string's end, so something must follow them.
    text: Any = leaf if isinstance(leaf, (str, bytes)) else array[()]
    return np.asarray(text + ("." if isinstance(text, str) else b"."))


def _as_leaf(array: np.ndarray) -> Any:
    # Numbers and strings come back as such, not as arrays without axes.
    if array.ndim:
        return array
    return array[()][:-1] if array.dtype.kind in "SU" else array[()]


def _kind(array: np.ndarray) -> tuple:
    # A string's type tells its length, which may change.
    text = array.dtype.kind in "SU"
    return array.shape, array.dtype.kind if text else array.dtype

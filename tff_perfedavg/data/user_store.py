"""User store: memory-mapped files of all users' rows, for any number of users.

A store is a directory:

    store.json    format version, shapes, dtypes, scale, class names, and the size
                  and SHA-256 of every other file
    users.bin     int64 [users, 4]: first row, first evaluation row, end, is_new
    features.bin  rows of all users, one user after the other
    labels.bin    their labels
    ids.npy       (where users have names) bytes [users]
    classes.bin   (where labels are users' own) int32 [users, labels]: of what classes
    training.bin  (where training draws labels afresh) int64 [users]: first row of
                  training

A user's rows are those of further classes for training alone, where there are some,
then its adaptation rows, then its evaluation rows. Features stay in the type they have
(uint8 images stay uint8); `scale` turns them into floating point when they are read.
Opening reads `store.json`, `users.bin` and `training.bin`, never the rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.data.verified_directory import read_header, verify, written_whole

FORMAT_VERSION = 1
_JSON, _USERS, _FEATURES, _LABELS, _IDS, _CLASSES, _TRAINING = (
    "store.json",
    "users.bin",
    "features.bin",
    "labels.bin",
    "ids.npy",
    "classes.bin",
    "training.bin",
)
_BUFFER_BYTES = 1 << 20
# Kinds of NumPy's types that are real numbers.
_NUMBERS = "biuf"
# Stores whose hashes were checked, by what changes with their files.
_VERIFIED: set[tuple] = set()
_AGAIN = "prepare the data again"


class Rows(NamedTuple):
    """Features and labels of some rows of one user.

    Attributes:
      x: `[rows, ...]` features as stored.
      y: `[rows, ...]` labels.
    """

    x: np.ndarray
    y: np.ndarray


class User(NamedTuple):
    """One user, to be written to a store.

    Attributes:
      adaptation: the rows it trains and adapts on.
      evaluation: the rows it is judged on; none may be an adaptation row.
      is_new: held out of training.
      name: what the data set calls it; either all users have names or none.
      classes: where labels are the user's own, of what class of the data set each is.
      training: where training draws labels afresh, further rows that it draws from, of
        labels from `num_classes` on.
    """

    adaptation: Rows
    evaluation: Rows
    is_new: bool = False
    name: str | None = None
    classes: Sequence[int] | None = None
    training: Rows | None = None


@dataclasses.dataclass(frozen=True)
class FrozenBody:
    """The frozen feature extractor that made a store's features of images.

    Attributes:
      name: of the network, one of `data.config.FEATURES`.
      image_size: pixels a side that images were resized to.
      image_shape: of one image before.
      image_scale: images times this are in [0, 1].
    """

    name: str
    image_size: int
    image_shape: Sequence[int]
    image_scale: float


@dataclasses.dataclass(frozen=True)
class Description:
    """Description of a store: what its rows mean.

    Attributes:
      name: of the data set.
      num_classes: labels are 0 to num_classes - 1; None if they are no classes.
      scale: features are multiplied by it when read; a number, or one for each
        entry of the last axis.
      class_names: names of the classes, if they have any.
      provenance: how the store came about (data set, partition, seed), for reports.
      own_labels: every user's labels are its own: of what classes, `User.classes` says.
      fresh_labels: in every round that a user takes part in, it trains on num_classes
        of its classes, drawn by lot, in an order drawn by lot.
      source_classes: where labels are users' own, names of the data set's classes.
      num_left_out: natural users left out, who hold fewer classes than labels.
      body: where features are those of a frozen network, which and of what; a mapping
        of its fields becomes one.
    """

    name: str
    num_classes: int | None
    scale: float | Sequence[float] = 1.0
    class_names: Sequence[str] = ()
    provenance: str = ""
    own_labels: bool = False
    fresh_labels: bool = False
    source_classes: Sequence[str] = ()
    num_left_out: int = 0
    body: FrozenBody | None = None

    def __post_init__(self) -> None:
        classes = self.num_classes
        if classes is not None and not (isinstance(classes, int) and classes >= 1):
            raise errors.DataError(
                f"Description.num_classes is {classes!r}; it must be a whole number of "
                "at least 1, or None where labels are no classes."
            )
        # JSON gives a list.
        object.__setattr__(self, "source_classes", tuple(self.source_classes))
        if isinstance(self.body, Mapping):
            object.__setattr__(self, "body", FrozenBody(**self.body))
        if self.fresh_labels and classes is None:
            raise errors.DataError(
                "Description.fresh_labels is set, but num_classes is None; numbers "
                "have no order to draw."
            )
        try:
            scale = np.asarray(self.scale, np.float64)
        except (TypeError, ValueError):
            scale = np.array(np.nan)
        if scale.ndim > 1 or not np.isfinite(scale).all():
            raise errors.DataError(
                f"Description.scale is {self.scale!r}; it must be a finite number, or "
                "one for each entry of the features' last axis."
            )

    def check_fits(self, features: tuple[int, ...]) -> None:
        """Raises `DataError` unless the scale suits features of a shape `[...]`."""
        count = np.shape(self.scale)
        if count and (not features or count[0] not in (1, features[-1])):
            raise errors.DataError(
                f"Description.scale has {count[0]} numbers, but the last axis of "
                f"features of shape {list(features)} has "
                f"{features[-1] if features else 'no'} entries; give one for each."
            )


class UserStore:
    """A user store, opened as memory maps: rows are read where they are asked for."""

    def __init__(self, path: pathlib.Path, header: dict):
        """Use `UserStore.open` or `UserStore.write`."""
        self.path = path
        self._header = header
        self._opened = self._stamp()

    # ------------------------------------------------------------------ writing

    @classmethod
    def write(
        cls,
        path: str | os.PathLike,
        users: Iterable[User],
        description: Description,
    ) -> UserStore:
        """Writes a store atomically, streaming it user by user.

        The store appears whole when the last user is written; a run that fails
        leaves nothing at `path`, a run that is killed a hidden directory beside it.

        Args:
          path: where the store will be; nothing may be there.
          users: the users in the order of their numbers. The first decides dtypes
            and shapes.
          description: what the rows mean.

        Raises:
          DataError: naming the user, if it has no rows at all, rows that are no array,
            rows and labels of different number, a name that is no text, another dtype
            or shape than the first user, features that are not finite, or labels out of
            range; if there are no users; if something is at `path`, or a file where a
            directory is needed; or if the disk does not take it. A user may have
            an empty split (a user with a single row has).
        """
        path = pathlib.Path(path)
        with written_whole(path) as directory:
            writer = _Writer(directory, description)
            for user in users:
                writer.add(user)
            writer.finish()
        return cls.open(path)

    # ------------------------------------------------------------------ reading

    @classmethod
    def open(cls, path: str | os.PathLike) -> UserStore:
        """Opens a store as memory maps, reading no row: 12 ms for a million users.

        Raises:
          DataError: naming the file, if it is missing, of another size than it was
            written with, unreadable or of another format version; if `store.json` lacks
            something or contradicts itself; or if `users.bin` gives users rows that are
            not there or another's.
        """
        path = pathlib.Path(path).absolute()
        missing = errors.DataError(
            f"No user store at {path} (it has no {_JSON}); write one with "
            "UserStore.write.",
            remedies=("UserStore.write",),
        )
        header = read_header(path, _JSON, FORMAT_VERSION, missing=missing, again=_AGAIN)
        _check_header(path / _JSON, header)
        store = cls(path, header)
        _check_users(path / _USERS, store.users, store.first_rows, store.num_rows)
        return store

    def verify(self) -> None:
        """Verifies every file's SHA-256; once in a process while none changes.

        Raises:
          DataError: naming the first file whose content has changed.
        """
        stamp = self._stamp()
        if stamp not in _VERIFIED:
            verify(self.path, self._header, again=_AGAIN)
            _VERIFIED.add(stamp)

    def check_unchanged(self, cause: BaseException | None = None) -> None:
        """Checks that no file was written to or replaced since the store was opened.

        Args:
          cause: what went wrong because of it, if something did.

        Raises:
          DataError: naming the store.
        """
        if self._stamp() != self._opened:
            raise errors.DataError(
                f"{self.path} has changed while it was in use. Put it back as it was "
                "and run the same command again, which goes on from the last "
                "checkpoint."
            ) from cause

    def _stamp(self) -> tuple:
        """What changes with the files: their numbers, sizes and times."""
        facts = []
        for name in sorted([_JSON, *self._header["files"]]):
            try:
                found = (self.path / name).stat()
            except OSError:
                return (str(self.path), None)
            facts.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return (str(self.path), tuple(facts))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the files' hashes: equal for stores of equal content."""
        text = json.dumps(self._header["files"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def description(self) -> Description:
        """The store's description: what its rows mean."""
        return Description(**self._header["description"])

    @property
    def num_users(self) -> int:
        """Number of users, training and new."""
        return int(self._header["num_users"])

    @property
    def num_rows(self) -> int:
        """Number of rows of all users."""
        return int(self._header["num_rows"])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row's features."""
        return tuple(self._header["features"]["shape"])

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of one row's label."""
        return tuple(self._header["labels"]["shape"])

    @property
    def feature_dtype(self) -> np.dtype:
        """Type of the features on disk."""
        return np.dtype(self._header["features"]["dtype"])

    @property
    def label_dtype(self) -> np.dtype:
        """Type of the labels on disk."""
        return np.dtype(self._header["labels"]["dtype"])

    @functools.cached_property
    def users(self) -> np.ndarray:
        """int64 `[users, 4]`: first row, first evaluation row, end, is_new."""
        return self._map(_USERS, np.dtype(np.int64), (self.num_users, 4))

    @functools.cached_property
    def first_rows(self) -> np.ndarray:
        """int64 `[users]`: where users' rows begin, those for training alone too."""
        if _TRAINING not in self._header["files"]:
            return self.users[:, 0]
        return self._map(_TRAINING, np.dtype(np.int64), (self.num_users,))

    @property
    def has_training_rows(self) -> bool:
        """Whether the store has rows for training alone (`training.bin`)."""
        return _TRAINING in self._header["files"]

    def owners(self) -> np.ndarray:
        """Returns each row's user, int64 `[rows]`."""
        sizes = np.asarray(self.users)[:, 2] - np.asarray(self.first_rows)
        return np.repeat(np.arange(self.num_users), sizes)

    @functools.cached_property
    def features(self) -> np.ndarray:
        """`[rows, ...]` features of all users, as stored."""
        return self._map(
            _FEATURES, self.feature_dtype, (self.num_rows, *self.input_shape)
        )

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """`[rows, ...]` labels of all users, as stored."""
        return self._map(_LABELS, self.label_dtype, (self.num_rows, *self.label_shape))

    @property
    def training_users(self) -> np.ndarray:
        """int64 numbers of the users that take part in training."""
        return np.flatnonzero(self.users[:, 3] == 0)

    @property
    def new_users(self) -> np.ndarray:
        """int64 numbers of the users held out of training."""
        return np.flatnonzero(self.users[:, 3])

    def adaptation(self, user: int) -> Rows:
        """Returns the user's adaptation rows."""
        start, split, _, _ = self._user(user)
        return Rows(self.features[start:split], self.labels[start:split])

    def evaluation(self, user: int) -> Rows:
        """Returns the user's evaluation rows."""
        _, split, end, _ = self._user(user)
        return Rows(self.features[split:end], self.labels[split:end])

    def training(self, user: int) -> Rows:
        """Returns a user's training rows: adaptation rows, and further ones if any."""
        _, split, _, _ = self._user(user)
        start = self.first_rows[user]
        return Rows(self.features[start:split], self.labels[start:split])

    def scaled(self, rows: Rows) -> Rows:
        """Returns rows as a model takes them: float32 features, times the scale."""
        scale = np.asarray(self.description.scale, np.float32)
        return Rows(np.asarray(rows.x, np.float32) * scale, np.asarray(rows.y))

    def user_name(self, user: int) -> str:
        """Returns the user's name in the data set, else its number."""
        self._user(user)
        if _IDS not in self._header["files"]:
            return str(user)
        name: bytes = np.load(self.path / _IDS, mmap_mode="r")[user]
        return name.decode()

    def label_names(self, user: int) -> list[str]:
        """Returns the names of a user's labels.

        Of labels of its own, they are the names of the classes behind them.
        """
        self._user(user)
        description = self.description
        if _CLASSES not in self._header["files"]:
            return list(description.class_names)
        shape = (self.num_users, description.num_classes or 0)
        classes = self._map(_CLASSES, np.dtype(np.int32), shape)[user]
        names = description.source_classes
        return [names[c] if c < len(names) else str(c) for c in classes.tolist()]

    def file(self, name: str) -> str:
        """Returns the path of a file, `users` for instance, for memory maps."""
        return str(self.path / f"{name}.bin")

    def _user(self, user: int) -> np.ndarray:
        if not 0 <= user < self.num_users:
            raise errors.DataError(
                f"{self.path} has users 0 to {self.num_users - 1}, not {user}."
            )
        bounds: np.ndarray = self.users[user]
        return bounds

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        return np.memmap(self.path / name, dtype, "r", shape=shape)


def check_whole(whose: str, labels: np.ndarray) -> None:
    """Raises `DataError` unless all labels are whole numbers, as classes are.

    Args:
      whose: how the message begins, for example `user 3 has`.
      labels: `[rows, ...]`.
    """
    if labels.dtype.kind != "f":
        return
    wrong = labels != np.floor(labels)
    if wrong.any():
        raise errors.DataError(
            f"{whose} the label {labels[wrong][0]:g}, but classes are whole numbers, "
            "and it would be cut to one; correct it, or give num_classes=None for "
            "numbers to predict."
        )


def _check_header(path: pathlib.Path, header: dict[str, Any]) -> None:
    """Raises `DataError`, naming the key, unless a header is whole and consistent."""
    wanted = {
        "description": dict,
        "num_users": int,
        "num_rows": int,
        "features": dict,
        "labels": dict,
    }
    for key, kind in wanted.items():
        if not isinstance(header.get(key), kind):
            raise errors.DataError(
                f"{path}: {key!r} is {header.get(key, 'missing')!r}; {_AGAIN}."
            )
    try:
        description = Description(**header["description"])
    except (TypeError, errors.DataError) as e:
        raise errors.DataError(f"{path}: 'description': {e}; {_AGAIN}.") from e
    users = header["num_users"]
    rows = {_USERS: (users, 4 * np.dtype(np.int64).itemsize)}
    if _TRAINING in header["files"]:
        rows[_TRAINING] = users, np.dtype(np.int64).itemsize
    if _CLASSES in header["files"]:
        of_user = (description.num_classes or 0) * np.dtype(np.int32).itemsize
        rows[_CLASSES] = users, of_user
    for key, name in (("features", _FEATURES), ("labels", _LABELS)):
        try:
            rows[name] = header["num_rows"], _row_bytes(header[key])
        except (LookupError, TypeError, ValueError, SyntaxError) as e:
            raise errors.DataError(
                f"{path}: {key!r} is {header[key]!r}, without a shape or dtype of "
                f"numbers; {_AGAIN}."
            ) from e
    description.check_fits(tuple(header["features"]["shape"]))
    for name, (count, size) in rows.items():
        found = header["files"].get(name, {}).get("bytes")
        if found != count * size:
            raise errors.DataError(
                f"{path} contradicts itself: {name} is said to have {found} bytes, but "
                f"{count} rows of {size} bytes; {_AGAIN}."
            )
    # Else users would lose their names, or their rows for training, without a word.
    for name in (_IDS, _CLASSES, _TRAINING):
        if name not in header["files"] and (path.parent / name).exists():
            raise errors.DataError(
                f"{path} contradicts itself: {name} is there, but not among its files; "
                f"{_AGAIN}."
            )


def _row_bytes(spec: dict[str, Any]) -> int:
    """Bytes of one row by a header's `shape` and `dtype`."""
    shape, name = spec["shape"], spec["dtype"]
    # NumPy takes None for float64.
    if not isinstance(shape, list) or not isinstance(name, str):
        raise TypeError
    dtype = np.dtype(name)
    if dtype.kind not in _NUMBERS or not all(_is_count(size) for size in shape):
        raise ValueError
    return dtype.itemsize * math.prod(shape)


def _is_count(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0


def _check_users(
    path: pathlib.Path, users: np.ndarray, first_rows: np.ndarray, num_rows: int
) -> None:
    """Raises `DataError`, naming the user, unless the users' rows partition all rows.

    Args:
      path: of the file, for the message.
      users: int64 `[users, 4]`.
      first_rows: int64 `[users]`, where their rows begin.
      num_rows: rows of all users.
    """
    start, split, end, is_new = np.asarray(users).T
    first = np.asarray(first_rows)
    previous = np.concatenate([[0], end[:-1]])
    good = (first == previous) & (first <= start)
    good &= (start <= split) & (split <= end) & (start < end)
    good &= (end <= num_rows) & ((is_new == 0) | (is_new == 1))
    if not good.all():
        user = int(np.argmin(good))
        raise errors.DataError(
            f"{path} is damaged: user {user} has the bounds {first[user]}, "
            f"{start[user]}, {split[user]} and {end[user]} (is_new {is_new[user]}), "
            f"where the user before ends at {previous[user]} and all rows at "
            f"{num_rows}; {_AGAIN}."
        )
    if len(end) and end[-1] != num_rows:
        raise errors.DataError(
            f"{path} is damaged: the rows from {end[-1]} to {num_rows} are nobody's; "
            f"{_AGAIN}."
        )


class _Writer:
    """Writer of a store's files into a directory."""

    def __init__(self, directory: pathlib.Path, description: Description):
        self._directory = directory
        self._description = description
        names = [_USERS, _FEATURES, _LABELS]
        names += [_CLASSES] * description.own_labels
        names += [_TRAINING] * description.fresh_labels
        self._files = {name: _HashedFile(directory / name) for name in names}
        self._first: Rows | None = None
        self._names: list[bytes] = []
        self._num_users = 0
        self._num_rows = 0

    def add(self, user: User) -> None:
        label = f"user {self._num_users}"
        if user.name is not None:
            label += f" ({user.name})"
            if not isinstance(user.name, str):
                raise errors.DataError(
                    f"{self._description.name}: {label} has a name that is no text; "
                    "give a str."
                )
        adaptation, evaluation = (self._rows(label, split) for split in user[:2])
        if self._first is None:
            self._first = Rows(adaptation.x[:0], adaptation.y[:0])
            self._description.check_fits(adaptation.x.shape[1:])
        training = self._training(label, user)
        for split in (adaptation, evaluation):
            self._check(label, split)
            self._check_labels(label, split, self._description.num_classes)
        first = self._num_rows
        start = first + len(training.y)
        split_at = start + len(adaptation.y)
        end = split_at + len(evaluation.y)
        if end == start:
            raise errors.DataError(f"{self._description.name}: {label} has no rows.")
        self._write_classes(label, user)
        # As many names as users so far: none, or one each.
        if len(self._names) != (self._num_users if user.name is not None else 0):
            raise errors.DataError(
                f"{self._description.name}: {label}: either all users have names or "
                "none has."
            )
        for split in (training, adaptation, evaluation):
            self._files[_FEATURES].write(np.ascontiguousarray(split.x))
            self._files[_LABELS].write(np.ascontiguousarray(split.y))
        if _TRAINING in self._files:
            self._files[_TRAINING].write(np.array([first], np.int64))
        self._files[_USERS].write(
            np.array([start, split_at, end, user.is_new], np.int64)
        )
        if user.name is not None:
            self._names.append(user.name.encode())
        self._num_users += 1
        self._num_rows = end

    def finish(self) -> None:
        if self._first is None:
            raise errors.DataError(f"{self._description.name}: there are no users.")
        if self._names:
            self._files[_IDS] = _HashedFile(self._directory / _IDS)
            np.save(self._files[_IDS], np.array(self._names))
        files = {name: file.close() for name, file in self._files.items()}
        header = {
            "format_version": FORMAT_VERSION,
            "description": dataclasses.asdict(self._description),
            "num_users": self._num_users,
            "num_rows": self._num_rows,
            "features": _spec(self._first.x),
            "labels": _spec(self._first.y),
            "files": files,
        }
        with open(self._directory / _JSON, "w") as file:
            json.dump(header, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def _training(self, label: str, user: User) -> Rows:
        """Returns a user's rows for training alone, checked; none where it has none."""
        assert self._first is not None
        if user.training is None:
            return self._first
        if _TRAINING not in self._files:
            raise errors.DataError(
                f"{self._description.name}: {label} has rows for training alone, which "
                "belong to a store of fresh_labels; say so in its Description."
            )
        training = self._rows(label, user.training)
        self._check(label, training)
        self._check_labels(label, training, None)
        return training

    def _write_classes(self, label: str, user: User) -> None:
        if _CLASSES not in self._files:
            return
        classes = np.asarray(user.classes if user.classes is not None else [])
        if classes.shape != (self._description.num_classes,):
            raise errors.DataError(
                f"{self._description.name}: {label} has the classes {user.classes}; "
                f"own_labels needs one for each of {self._description.num_classes} "
                "labels."
            )
        self._files[_CLASSES].write(classes.astype(np.int32))

    def _rows(self, label: str, split: Rows) -> Rows:
        name = f"{self._description.name}: {label}"
        try:
            rows = Rows(np.asarray(split.x), np.asarray(split.y))
        except (AttributeError, TypeError, ValueError) as e:
            raise errors.DataError(
                f"{name} has rows that are no arrays ({e}); give `Rows` of features "
                "and labels, every row of the same shape."
            ) from e
        if rows.x.ndim == 0 or rows.y.ndim == 0 or len(rows.x) != len(rows.y):
            raise errors.DataError(
                f"{name} has features of shape {rows.x.shape} and labels of shape "
                f"{rows.y.shape}; the first axis of both must be its rows."
            )
        return rows

    def _check(self, label: str, rows: Rows) -> None:
        name = f"{self._description.name}: {label}"
        assert self._first is not None
        for kind, array, first in (
            ("features", rows.x, self._first.x),
            ("labels", rows.y, self._first.y),
        ):
            if _spec(array) != _spec(first):
                raise errors.DataError(
                    f"{name} has {kind} {_spec(array)}, user 0 has {_spec(first)}."
                )
            if array.dtype.kind not in _NUMBERS:
                raise errors.DataError(
                    f"{name} has {kind} of type {array.dtype}; numbers are needed."
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise errors.DataError(
                    f"{name} has {kind} that are not finite numbers; remove or fill "
                    "those rows."
                )
        if self._description.num_classes is not None:
            check_whole(f"{name} has", rows.y)

    def _check_labels(self, label: str, rows: Rows, most: int | None) -> None:
        """Raises `DataError` unless labels, if classes, are from 0 to below `most`."""
        if self._description.num_classes is None or not rows.y.size:
            return
        if rows.y.min() < 0 or (most is not None and rows.y.max() >= most):
            last = "" if most is None else f" to {most - 1}"
            raise errors.DataError(
                f"{self._description.name}: {label} has a label outside 0{last}."
            )


class _HashedFile:
    """A file writer that keeps a running SHA-256 and size."""

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | np.ndarray) -> None:
        # An array is a buffer, which NumPy's types do not say.
        buffer: Any = data
        view = memoryview(buffer).cast("B") if len(data) else b""
        self._hash.update(view)
        self._size += len(view)
        self._file.write(view)

    def close(self) -> dict:
        """Makes the file durable and returns its size and hash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}


def _spec(array: np.ndarray) -> dict:
    return {"dtype": array.dtype.name, "shape": list(array.shape[1:])}

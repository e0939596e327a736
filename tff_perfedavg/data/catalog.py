"""Data set loaders by name: labelled rows, not yet divided among users.

Looked for in this order: files in `data_dir` (or `TFF_PERFEDAVG_DATA_DIR`), then the
downloader of the library that knows the data set. Heavy packages are imported only by
the loader that needs them.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from tff_perfedavg import errors, quiet
from tff_perfedavg.data import idx, omniglot

DATA_DIR_VARIABLE = "TFF_PERFEDAVG_DATA_DIR"
# Characters of context from which the next is predicted.
CONTEXT_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class LabeledRows:
    """A labelled data set, not yet divided among users.

    Attributes:
      name: of the data set.
      x: `[rows, ...]` features in the type they are kept in.
      y: int32 `[rows]` classes, 0 to num_classes - 1.
      num_classes: number of classes.
      scale: features are multiplied by it when read.
      class_names: names of the classes.
      keys: `[rows]` whose each row is, or, where classes are of families, of which
        family; None if nobody's.
      new_keys: whose rows are new users', where the data set says so.
      groups: `[rows]`; rows of one group share content and must not be separated.
        None if every row stands alone.
      in_order: groups come in the order of time, and evaluation takes the last.
      test: the data set's own test rows, where it has some; they are divided by the
        same rule to become evaluation rows.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    num_classes: int
    scale: float | Sequence[float] = 1.0
    class_names: Sequence[str] = ()
    keys: np.ndarray | None = None
    new_keys: Collection = ()
    groups: np.ndarray | None = None
    in_order: bool = False
    test: LabeledRows | None = None


def load(name: str, data_dir: str | os.PathLike | None = None) -> LabeledRows:
    """Loads a data set.

    Args:
      name: one of those below that are rows: `digits`, `mnist`, `mnist_by_writer`,
        `fashion_mnist`, `cifar10`, `uci_har`, `omniglot`, `shakespeare`.
      data_dir: where its files may be; by default `TFF_PERFEDAVG_DATA_DIR`.

    Raises:
      DataError: if the data set is unknown, or found nowhere, saying what was looked
        for where and how to get it; or if a file is damaged, naming it.
    """
    if name not in _LOADERS:
        raise errors.DataError(
            f"There is no data set {name!r}; known: {', '.join(_LOADERS)}."
        )
    return _LOADERS[name](_directory(data_dir))


def _directory(data_dir: str | os.PathLike | None) -> pathlib.Path | None:
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if not chosen:
        return None
    directory = pathlib.Path(chosen)
    if not directory.is_dir():
        raise errors.DataError(f"The data directory {directory} is no directory.")
    return directory


def _digits(directory: pathlib.Path | None) -> LabeledRows:
    from sklearn import datasets

    bunch = datasets.load_digits()
    return LabeledRows(
        name="digits",
        x=bunch.images.astype(np.uint8),
        y=bunch.target.astype(np.int32),
        num_classes=10,
        scale=1 / 16,
        class_names=[str(d) for d in range(10)],
    )


_FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
_CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


_IMAGE_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# The first labels of the training rows, to tell apart files of equal names.
_FIRST_LABELS = {
    "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
    "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
}


def _keras_images(
    name: str, files: Sequence[str], class_names: Sequence[str]
) -> Callable[[pathlib.Path | None], LabeledRows]:
    """A loader of ten classes of images that tf.keras.datasets knows."""

    def load_images(directory):
        arrays = _read_npz(directory, files, _IMAGE_ARRAYS)
        if arrays is None and name in _FIRST_LABELS:
            arrays = _read_idx_set(directory, name)
        if arrays is not None:
            parts = [(arrays[f"x_{p}"], arrays[f"y_{p}"]) for p in ("train", "test")]
        else:
            tf = quiet.import_module("tensorflow")
            try:
                parts = getattr(tf.keras.datasets, name).load_data()
            except Exception as e:
                raise _not_found(
                    name, directory, files, f"tf.keras.datasets.{name}", str(e)
                ) from e
        train, test = (
            LabeledRows(
                name=name,
                x=x,
                y=np.asarray(y, np.int32).reshape(-1),
                num_classes=10,
                scale=1 / 255,
                class_names=class_names,
            )
            for x, y in parts
        )
        return dataclasses.replace(train, test=test)

    return load_images


def _read_idx_set(
    directory: pathlib.Path | None, name: str
) -> dict[str, np.ndarray] | None:
    """Reads MNIST's or Fashion-MNIST's four IDX files, if any of them is there."""
    if directory is None:
        return None
    # Both data sets' files have the same names: the folder of one goes first.
    for folder in (directory / name, directory):
        found = {
            array: idx.find(folder / file) for array, file in idx.MNIST_FILES.items()
        }
        if any(found.values()):
            break
    else:
        return None
    missing = [idx.MNIST_FILES[array] for array, path in found.items() if path is None]
    if missing:
        raise errors.DataError(
            f"{name} is incomplete in {folder}: {', '.join(missing)} (or the same "
            "ending in .gz) is missing; put it there."
        )
    arrays = {array: idx.read(path) for array, path in found.items() if path}
    _check_images(arrays, f"{folder}'s IDX files")
    first = arrays["y_train"][:10].tolist()
    for other, labels in _FIRST_LABELS.items():
        if other != name and first == labels:
            raise errors.DataError(
                f"The IDX files in {folder} are {other}'s, not {name}'s; put {name}'s "
                f"into {directory / name}."
            )
    return arrays


def _check_images(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raises `DataError` unless the arrays are images and whole labels, row by row."""
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim < 3 or len(x) != y.size or y.dtype.kind not in "iu":
            raise errors.DataError(
                f"{where}: x_{part} is {x.dtype} {list(x.shape)} and y_{part} "
                f"{y.dtype} {list(y.shape)}; images [rows, height, width, ...] and as "
                "many whole numbers are needed."
            )


def _mnist_by_writer(directory: pathlib.Path | None) -> LabeledRows:
    file = "mnist_by_writer.npz"
    parts = ("train", "test")
    writer_arrays = [f"writer_{part}" for part in parts]
    arrays = _read_npz(directory, [file], [*_IMAGE_ARRAYS, *writer_arrays])
    if arrays is None:
        raise _not_found("mnist_by_writer", directory, [file])
    writers = {part: arrays[f"writer_{part}"] for part in parts}
    return LabeledRows(
        name="mnist_by_writer",
        x=np.concatenate([arrays[f"x_{part}"] for part in parts]),
        y=np.concatenate([arrays[f"y_{part}"] for part in parts]).astype(np.int32),
        num_classes=10,
        scale=1 / 255,
        class_names=[str(d) for d in range(10)],
        keys=np.concatenate([writers[part] for part in parts]),
        new_keys=frozenset(writers["test"].tolist()),
    )


_HAR_FILE, _HAR_ARCHIVE = "uci_har_inertial_i16.npz", "UCI HAR Dataset"
_HAR_ARRAYS = ("x", "scale", "y", "subject", "segment", "uci_test_subjects")
_HAR_CLASSES = [
    "WALKING",
    "WALKING_UPSTAIRS",
    "WALKING_DOWNSTAIRS",
    "SITTING",
    "STANDING",
    "LAYING",
]
_HAR_CHANNELS = [
    f"{signal}_{axis}"
    for signal in ("body_acc", "body_gyro", "total_acc")
    for axis in "xyz"
]


def _uci_har(directory: pathlib.Path | None) -> LabeledRows:
    arrays = _read_npz(directory, [_HAR_FILE], _HAR_ARRAYS)
    if arrays is not None:
        x, scale, y = arrays["x"], arrays["scale"].tolist(), arrays["y"]
        subject, segment = arrays["subject"], arrays["segment"]
        new = arrays["uci_test_subjects"]
    elif directory and (directory / _HAR_ARCHIVE).is_dir():
        x, y, subject, new = _read_har_archive(directory / _HAR_ARCHIVE)
        scale = 1.0
        # Consecutive windows of one person at one activity overlap by half.
        starts = np.flatnonzero((np.diff(subject) != 0) | (np.diff(y) != 0)) + 1
        segment = np.zeros([len(y)], np.int64)
        segment[starts] = 1
        segment = np.cumsum(segment)
    else:
        raise _not_found("uci_har", directory, [_HAR_FILE, _HAR_ARCHIVE + "/"])
    # A segment's number may mean another segment for another person.
    groups = subject.astype(np.int64) * (int(segment.max()) + 1) + segment
    return LabeledRows(
        name="uci_har",
        x=x,
        y=y.astype(np.int32),
        num_classes=6,
        scale=scale,
        class_names=_HAR_CLASSES,
        keys=subject,
        new_keys=frozenset(new.tolist()),
        groups=groups,
    )


def _read_har_archive(root: pathlib.Path):
    """Reads the archive as UCI gives it out, unpacked."""
    parts = []
    for part in ("train", "test"):
        try:
            signals = [
                np.loadtxt(
                    root / part / "Inertial Signals" / f"{channel}_{part}.txt",
                    dtype=np.float32,
                    ndmin=2,
                )
                for channel in _HAR_CHANNELS
            ]
            y = np.loadtxt(root / part / f"y_{part}.txt", dtype=np.int32, ndmin=1) - 1
            subject = np.loadtxt(
                root / part / f"subject_{part}.txt", dtype=np.int32, ndmin=1
            )
        except (OSError, ValueError) as e:
            raise errors.DataError(f"{root} is damaged: {e}.") from e
        parts.append((np.stack(signals, -1), y, subject))
    x, y, subject = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return x, y, subject, np.unique(parts[1][2])


_OMNIGLOT_FILE = "omniglot_small.npz"
_OMNIGLOT_ARRAYS = ("x", "character", "alphabet", "character_names", "alphabet_names")
# Held out where the data set does not say which alphabets are.
_NEW_ALPHABETS = ("Greek", "Sanskrit")


def _omniglot(directory: pathlib.Path | None) -> LabeledRows:
    drawings = _read_omniglot(directory)
    if drawings is None:
        files = [_OMNIGLOT_FILE, omniglot.BACKGROUND]
        try:
            drawings = _omniglot_of_tfds(directory)
        except ImportError as e:
            raise _not_found("omniglot", directory, files) from e
        except Exception as e:
            raise _not_found(
                "omniglot", directory, files, "tensorflow_datasets", str(e)
            ) from e
    new = drawings.new_alphabets or _NEW_ALPHABETS
    return LabeledRows(
        name="omniglot",
        x=drawings.x,
        y=drawings.character.astype(np.int32),
        num_classes=len(drawings.character_names),
        scale=1 / 255,
        class_names=drawings.character_names,
        keys=drawings.alphabet,
        new_keys=frozenset(new),
    )


def _read_omniglot(directory: pathlib.Path | None) -> omniglot.Drawings | None:
    arrays = _read_npz(directory, [_OMNIGLOT_FILE], _OMNIGLOT_ARRAYS)
    if arrays is None:
        return omniglot.read_archives(directory) if directory else None
    names = arrays["alphabet_names"]
    return omniglot.Drawings(
        arrays["x"],
        arrays["character"],
        names[arrays["alphabet"]],
        arrays["character_names"].tolist(),
        (),
    )


def _omniglot_of_tfds(directory: pathlib.Path | None) -> omniglot.Drawings:
    """Reads Omniglot through TensorFlow Datasets, where that is installed."""
    import tensorflow_datasets as tfds

    parts, new = [], []
    for split in ("train", "test"):
        found, info = tfds.load(
            "omniglot", split=split, data_dir=directory, with_info=True
        )
        names = info.features["alphabet"].names
        rows = list(tfds.as_numpy(found))
        alphabets = np.array([names[row["alphabet"]] for row in rows])
        characters = [row["alphabet_char_id"] + 1 for row in rows]
        ink = np.stack([1 - row["image"][..., 0] / np.float32(255) for row in rows])
        parts.append((omniglot.shrink(ink), alphabets, characters))
        if split == "test":
            new = np.unique(alphabets).tolist()
    x, alphabet, character = (np.concatenate(p) for p in zip(*parts, strict=True))
    called = [f"{a}/character{c:02}" for a, c in zip(alphabet, character, strict=True)]
    names, numbers = np.unique(called, return_inverse=True)
    return omniglot.Drawings(x, numbers, alphabet, names.tolist(), new)


def _shakespeare(directory: pathlib.Path | None) -> LabeledRows:
    file = "tinyshakespeare_by_speaker.npz"
    arrays = _read_npz(directory, [file], ["text", "offset", "client"])
    if arrays is None:
        raise _not_found("shakespeare", directory, [file])
    text, offsets, speakers = arrays["text"], arrays["offset"], arrays["client"]
    characters, codes = np.unique(text, return_inverse=True)
    windows, labels, keys, groups = [], [], [], []
    for speaker, (start, end) in enumerate(itertools.pairwise(offsets)):
        own = codes[start:end].astype(np.uint8)
        # Windows do not overlap, so each is a group of its own: a context and the
        # character behind it.
        count = len(own) // (CONTEXT_LENGTH + 1)
        table = own[: count * (CONTEXT_LENGTH + 1)].reshape(count, CONTEXT_LENGTH + 1)
        windows.append(table[:, :-1])
        labels.append(table[:, -1])
        keys.append(np.full([count], speakers[speaker]))
        groups.append(np.arange(count))
    return LabeledRows(
        name="shakespeare",
        x=np.concatenate(windows),
        y=np.concatenate(labels).astype(np.int32),
        num_classes=len(characters),
        class_names=[chr(c) for c in characters],
        keys=np.concatenate(keys),
        groups=np.concatenate(groups),
        in_order=True,
    )


_LOADERS: dict[str, Callable[[pathlib.Path | None], LabeledRows]] = {
    "digits": _digits,
    "mnist": _keras_images(
        "mnist", ["mnist.npz", "mnist_by_writer.npz"], [str(d) for d in range(10)]
    ),
    "mnist_by_writer": _mnist_by_writer,
    "fashion_mnist": _keras_images("fashion_mnist", ["fashion_mnist.npz"], _FASHION),
    "cifar10": _keras_images("cifar10", ["cifar10.npz"], _CIFAR10),
    "uci_har": _uci_har,
    "omniglot": _omniglot,
    "shakespeare": _shakespeare,
}

_IMAGES = f"NAME.npz has arrays {', '.join(_IMAGE_ARRAYS)}"
_IDX = ", ".join(idx.MNIST_FILES.values())
_SOURCES = {
    "mnist": f"{_IMAGES.replace('NAME', 'mnist')}; or the four IDX files {_IDX}, "
    "plain or ending in .gz, there or in mnist/ there",
    "fashion_mnist": f"{_IMAGES.replace('NAME', 'fashion_mnist')}; or the four IDX "
    f"files {_IDX}, plain or ending in .gz, there or in fashion_mnist/ there",
    "cifar10": _IMAGES.replace("NAME", "cifar10"),
    "mnist_by_writer": "MNIST's images with NIST's writers, as QMNIST has them: "
    "arrays x_train, y_train, writer_train, and the same ending in _test",
    "uci_har": f"{_HAR_FILE} has arrays {', '.join(_HAR_ARRAYS)}; or unpack the "
    "archive 'Human Activity Recognition Using Smartphones' of the UCI Machine "
    "Learning Repository there",
    "omniglot": f"{_OMNIGLOT_FILE} has arrays {', '.join(_OMNIGLOT_ARRAYS)}; or put "
    f"Omniglot's {omniglot.BACKGROUND} and {omniglot.EVALUATION} there as they are; or "
    "install tensorflow_datasets, which downloads it",
    "shakespeare": "Tiny Shakespeare by speaker: arrays text (uint8), offset "
    "(speakers + 1) and client (names)",
}


def _read_npz(
    directory: pathlib.Path | None, files: Sequence[str], arrays: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """Reads the arrays from the first of the files that is there.

    Raises:
      DataError: if that file is damaged or lacks one of them.
    """
    for file in files:
        if directory and (directory / file).is_file():
            path = directory / file
            try:
                with np.load(path, allow_pickle=False) as archive:
                    names = set(archive.files)
                    found = {name: archive[name] for name in arrays if name in names}
            except Exception as e:
                # A damaged archive is told in many ways.
                raise errors.DataError(f"{path} is damaged: {e}.") from e
            missing = [name for name in arrays if name not in found]
            if missing:
                raise errors.DataError(
                    f"{path} has no array {', '.join(missing)}; it needs "
                    f"{', '.join(arrays)} and has {', '.join(sorted(names)) or 'none'}."
                )
            if set(_IMAGE_ARRAYS) <= set(found):
                _check_images(found, str(path))
            return found
    return None


def _not_found(
    name: str,
    directory: pathlib.Path | None,
    files: Sequence[str],
    downloader: str | None = None,
    reason: str = "",
) -> errors.DataError:
    wanted = list(files)
    if name in _FIRST_LABELS:
        wanted.append(f"{idx.MNIST_FILES['x_train']}[.gz]")
    where = f"in {directory}" if directory else f"(${DATA_DIR_VARIABLE} is not set)"
    parts = [f"{name} was not found: no {' or '.join(wanted)} {where}"]
    if downloader:
        parts.append(f"and {downloader} could not download it ({reason})")
    remedy = (
        f"Put the file into a directory and name that in data_dir or "
        f"{DATA_DIR_VARIABLE} ({_SOURCES[name]})"
    )
    if downloader:
        remedy = (
            f"Run {downloader}.load_data() where there is a network, or p{remedy[1:]}"
        )
    told = " ".join(parts) + f". {remedy}."
    return errors.DataError(told, remedies=("data_dir",))

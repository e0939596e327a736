"""Conversion between user stores and `tff.simulation.datasets.ClientData`."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.data.division import choose_new_users
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.federated.client_data import mapped_file

# From the elements of one client's data set, stacked, to its rows.
ToRows = Callable[[Mapping[str, np.ndarray]], Rows]

_STACKOVERFLOW_WORDS = 10_000
_STACKOVERFLOW_CONTEXT = 20


def users_from_client_data(
    train: tff.simulation.datasets.ClientData,
    to_rows: ToRows,
    *,
    test: tff.simulation.datasets.ClientData | None = None,
    evaluation_fraction: float = 0.2,
    num_new_users: int = 0,
    min_rows: int = 1,
    seed: int = 0,
) -> Iterator[User]:
    """Reads TFF client data, SQLite-backed or in memory, as users for a store.

    Args:
      train: every client's adaptation rows, one row an element; all rows, where
        there is no `test`.
      to_rows: from one client's elements, stacked by name, to its rows.
      test: every client's evaluation rows; clients it lacks have none.
      evaluation_fraction: share of the rows, the last ones, that are evaluation
        rows where there is no `test`.
      num_new_users: how many clients, chosen by lot, are held out of training.
      min_rows: clients with fewer rows are left out.
      seed: of the choice of new users.

    Yields:
      One user per client, in the order of the client ids, named by them.
    """
    ids = train.client_ids
    with_test = frozenset(test.client_ids if test is not None else ())
    is_new = choose_new_users(len(ids), num_new_users, seed)
    for client, new in zip(ids, is_new, strict=True):
        adaptation = to_rows(_stack(train, client))
        if test is None:
            size = len(adaptation.y)
            end = max(1, size - max(1, round(size * evaluation_fraction)))
            evaluation = Rows(adaptation.x[end:], adaptation.y[end:])
            adaptation = Rows(adaptation.x[:end], adaptation.y[:end])
        elif client in with_test:  # so there is a test
            evaluation = to_rows(_stack(test, client))
        else:
            evaluation = Rows(adaptation.x[:0], adaptation.y[:0])
        if len(adaptation.y) + len(evaluation.y) >= min_rows:
            yield User(adaptation, evaluation, bool(new), client)


def client_data_from_store(
    store: UserStore, *, evaluation: bool = False
) -> tff.simulation.datasets.ClientData:
    """Converts a store's users to client data for TFF's own simulations.

    Args:
      store: the users; they stay on disk.
      evaluation: give the evaluation rows rather than the adaptation rows.

    Returns:
      Client data whose client ids are the users' numbers, and whose elements are
      single rows (x, y), features as stored.
    """

    def dataset(client_id):
        bounds = tf.gather(
            mapped_file(store, "users"), tf.strings.to_number(client_id, tf.int64)
        )
        rows = tf.range(*((bounds[1], bounds[2]) if evaluation else bounds[:2]))
        x, y = (
            tf.gather(mapped_file(store, name), rows) for name in ("features", "labels")
        )
        return tf.data.Dataset.from_tensor_slices((x, y))

    return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(
        [str(user) for user in range(store.num_users)], dataset
    )


def load(
    config: DataConfig, cache_dir: str | os.PathLike | None = None
) -> tuple[Description, Iterator[User]]:
    """Loads `femnist`, `cifar100` or `stackoverflow` through TFF's own loaders.

    Args:
      config: which, and how many users are new.
      cache_dir: where TFF keeps what it downloads.

    Raises:
      DataError: if TFF cannot load the data set, saying what it tried.
    """
    loader, description, to_rows = _SETS[config.dataset]
    try:
        train, test, *more = loader(cache_dir)
    except Exception as e:
        raise errors.DataError(
            f"{config.dataset} was not found: TFF's loader "
            f"(tff.simulation.datasets.{loader.__name__.strip('_')}) looked in "
            f"{cache_dir or 'its default cache'} and could not download it ({e}). Run "
            "the loader once where there is a network, and name its cache.",
            remedies=("data_dir",),
        ) from e
    users = users_from_client_data(
        train,
        to_rows(*more),
        test=test,
        num_new_users=config.num_new_users,
        min_rows=config.min_rows,
        seed=config.seed,
    )
    return description(config), users


def image_rows(image: str, label: str) -> ToRows:
    """Returns a function from a client's image elements to rows.

    Floating-point images from 0 to 1 become uint8.

    Args:
      image: name of the images among an element's values.
      label: name of the classes, whole numbers.
    """

    def to_rows(elements: Mapping[str, np.ndarray]) -> Rows:
        x = elements[image]
        if x.dtype.kind == "f":
            x = np.rint(x * 255).astype(np.uint8)
        return Rows(x, elements[label].astype(np.int32))

    return to_rows


def sentence_rows(text: str, words: Mapping[bytes, int], context: int) -> ToRows:
    """Returns a function from a client's sentences to rows of next-word prediction.

    A sentence gives one row: its first `context` words, numbered from 1 (0 where the
    sentence is shorter, `len(words) + 1` for a word not listed), and the word behind
    them, or, where it is shorter, its last word behind the others.

    Args:
      text: name of the sentences among an element's values, bytes with spaces.
      words: from a word to its number, from 1.
      context: words in x, which becomes int32 `[rows, context]`.
    """

    def to_rows(elements: Mapping[str, np.ndarray]) -> Rows:
        x, y = [], []
        for sentence in elements[text]:
            numbers = [words.get(w, len(words) + 1) for w in sentence.split()]
            numbers = numbers[: context + 1]
            if len(numbers) > 1:
                padding = [0] * (context + 1 - len(numbers))
                x.append(padding + numbers[:-1])
                y.append(numbers[-1])
        return Rows(np.array(x, np.int32).reshape(-1, context), np.array(y, np.int32))

    return to_rows


def _stack(
    data: tff.simulation.datasets.ClientData, client: str
) -> Mapping[str, np.ndarray]:
    columns: dict[str, list[Any]] = collections.defaultdict(list)
    for element in data.create_tf_dataset_for_client(client).as_numpy_iterator():
        for name, value in element.items():
            columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _emnist(cache_dir):
    return tff.simulation.datasets.emnist.load_data(
        only_digits=False, cache_dir=cache_dir
    )


def _cifar100(cache_dir):
    return tff.simulation.datasets.cifar100.load_data(cache_dir=cache_dir)


def _stackoverflow(cache_dir):
    counts = tff.simulation.datasets.stackoverflow.load_word_counts(
        cache_dir=cache_dir, vocab_size=_STACKOVERFLOW_WORDS
    )
    train, _, test = tff.simulation.datasets.stackoverflow.load_data(
        cache_dir=cache_dir
    )
    return train, test, {word.encode(): i + 1 for i, word in enumerate(counts)}


def _describe(num_classes: int, scale: float) -> Callable[[DataConfig], Description]:
    def describe(config: DataConfig) -> Description:
        return Description(
            name=config.dataset,
            num_classes=num_classes,
            scale=scale,
            provenance=str(config),
        )

    return describe


_SETS: dict[str, tuple[Callable, Callable[[DataConfig], Description], Callable]] = {
    "femnist": (
        _emnist,
        _describe(62, 1 / 255),
        lambda: image_rows("pixels", "label"),
    ),
    "cifar100": (
        _cifar100,
        _describe(100, 1 / 255),
        lambda: image_rows("image", "label"),
    ),
    "stackoverflow": (
        _stackoverflow,
        _describe(_STACKOVERFLOW_WORDS + 2, 1.0),
        lambda words: sentence_rows("tokens", words, _STACKOVERFLOW_CONTEXT),
    ),
}

"""Forms of client data: TFF types of clients' values, and access to their rows.

A client work or an evaluation knows its data only as `UserRows`. A form of client
data says what TFF type one client's value has, for which users a client stands, and
how their rows are found inside the graph. All forms give the same result.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore, check_whole
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.batches import UserRows

Users = Sequence[int] | np.ndarray
# What is done for one user: from its number (int32 scalar) and its rows.
TrainUser = Callable[[tf.Tensor, UserRows], Any]
# The same for several at once: from `[users]` numbers and rows with that leading axis.
TrainUsers = Callable[[tf.Tensor, UserRows], Any]
# From a user's number, its adaptation and its evaluation rows to its results.
EvaluateUser = Callable[[tf.Tensor, UserRows, UserRows], Any]


class ClientData(Protocol):
    """Interface of a form of client data."""

    @property
    def fresh_labels(self) -> int:
        """Number of labels of the tasks that training draws for users; 0 for none."""

    @property
    def training_type(self) -> tff.Type:
        """Type of one client's value in training."""

    @property
    def evaluation_type(self) -> tff.Type:
        """Type of one client's value in evaluation."""

    def sum_users(self, value: Any, one: TrainUser, side_by_side: TrainUsers) -> Any:
        """Returns the sum over the client's users of what training gives for each.

        Args:
          value: of `training_type`.
          one: trains one user; returns a structure of tensors.
          side_by_side: trains several; returns the same with a leading axis.
        """

    def map_users(self, value: Any, evaluate: EvaluateUser) -> Any:
        """Returns what evaluation gives for each of the client's users.

        Args:
          value: of `evaluation_type`.
          evaluate: evaluates one user; returns a structure of tensors. A form whose
            clients stand for several users gives it a leading axis.
        """


class StoreClientData:
    """Clients as users of a `UserStore`: a client's value is its user's number.

    The rows are memory-mapped by the process that runs the client (TFF's worker), so
    they never pass through TFF's executors, and a store may be larger than memory.
    Features become float32, times the store's scale.
    """

    def __init__(self, store: UserStore, model: Model, *, with_steps: bool = False):
        """Checks that the model fits the store.

        Args:
          store: the users.
          model: what is trained.
          with_steps: whether each client's value says, too, how many of its local
            steps its user does (partial work).

        Raises:
          DataError: if features or labels have another shape or number of classes
            than the model's, or classes are no whole numbers.
        """
        for kind, found, wanted in (
            ("features", store.input_shape, model.input_spec.shape[1:]),
            ("labels", store.label_shape, model.label_spec.shape[1:]),
            ("classes", store.description.num_classes, model.num_classes),
        ):
            if found != (wanted if kind == "classes" else tuple(wanted)):
                raise errors.DataError(
                    f"{store.path} has {kind} {found}, the model {model.name!r} takes "
                    f"{wanted}."
                )
        if model.num_classes is not None:
            check_whole(f"{store.path} has", store.labels)
        self._store = store
        self._model = model
        self.with_steps = with_steps

    @property
    def fresh_labels(self) -> int:
        description = self._store.description
        return (description.num_classes or 0) if description.fresh_labels else 0

    @property
    def training_type(self) -> tff.TensorType:
        return tff.TensorType(np.int32, [2] if self.with_steps else [])

    @property
    def evaluation_type(self) -> tff.TensorType:
        return tff.TensorType(np.int32)

    def clients(self, users: Users, steps: Users | None = None) -> Sequence[Any]:
        """Returns the clients' values that stand for these users, in their order.

        Args:
          users: their numbers.
          steps: how many local steps each does, from 1; where clients' values say so.

        Raises:
          ConfigError: if steps are given and not said, or the other way round.
        """
        return [*self._values(users, steps)]

    def _values(self, users: Users, steps: Users | None) -> np.ndarray:
        """Returns int32 `[users]`, or `[users, 2]` with steps."""
        if (steps is not None) != self.with_steps:
            raise errors.ConfigError(
                f"with_steps is {self.with_steps}, but users' steps are "
                f"{'not ' if steps is None else ''}given; let both say the same."
            )
        numbers = np.asarray(users, np.int32)
        if steps is None:
            return numbers
        return np.stack([numbers, np.asarray(steps, np.int32)], -1)

    def _users(self, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns users' numbers, and their steps where values say them."""
        if self.with_steps:
            return values[..., 0], values[..., 1]
        return values, None

    def sum_users(
        self, value: tf.Tensor, one: TrainUser, side_by_side: TrainUsers
    ) -> Any:
        user, steps = self._users(value)
        return one(user, self._map_files().training(user, steps))

    def map_users(self, value: tf.Tensor, evaluate: EvaluateUser) -> Any:
        files = self._map_files()
        return evaluate(value, files.adaptation(value), files.evaluation(value))

    def _map_files(self) -> _MappedStore:
        return _MappedStore(self._store, self._model)


class BlockClientData(StoreClientData):
    """Clients as blocks of users of a store: a client's value is their numbers.

    For tiny models and very large cohorts, where TFF's cost per client shows. Blocks
    may be of different sizes; each user is trained and excluded as if it were a
    client of its own, and the block's update is the mean over its users, with their
    total weight.
    """

    def __init__(
        self,
        store: UserStore,
        model: Model,
        block_size: int,
        layout: str = "loop",
        *,
        with_steps: bool = False,
    ):
        """Checks that the model fits the store.

        Args:
          store: the users.
          model: what is trained.
          block_size: the most users a client stands for.
          layout: `loop` trains a block's users one after the other, `vectorized`
            side by side.
          with_steps: as for `StoreClientData`.

        Raises:
          DataError: as `StoreClientData`.
          ConfigError: if the block size is below 1 or the layout unknown.
        """
        super().__init__(store, model, with_steps=with_steps)
        if block_size < 1:
            raise errors.ConfigError(
                f"block_size is {block_size}; it must be at least 1."
            )
        if layout not in BLOCK_LAYOUTS:
            raise errors.ConfigError(
                f"block layout is {layout!r}; known: {', '.join(BLOCK_LAYOUTS)}."
            )
        self.block_size = block_size
        self.layout = layout

    @property
    def training_type(self) -> tff.TensorType:
        return tff.TensorType(np.int32, [None, 2] if self.with_steps else [None])

    @property
    def evaluation_type(self) -> tff.TensorType:
        return tff.TensorType(np.int32, [None])

    def clients(self, users: Users, steps: Users | None = None) -> Sequence[Any]:
        values = self._values(users, steps)
        if not len(values):
            # A Poisson sample may be empty; noise is added all the same.
            return [values]
        # Even blocks, so that none is left for the end alone; a power of two of them,
        # since TFF compiles anew for every number of clients it has not seen.
        num_blocks = 1
        while num_blocks * self.block_size < len(values):
            num_blocks *= 2
        return np.array_split(values, min(num_blocks, len(values)))

    def sum_users(
        self, value: tf.Tensor, one: TrainUser, side_by_side: TrainUsers
    ) -> Any:
        # Outside of the loop, which would map and unmap them for every user.
        files = self._map_files()
        if self.layout == "vectorized":
            users, steps = self._users(value)
            each = side_by_side(users, files.training(users, steps))
            return tf.nest.map_structure(lambda t: tf.reduce_sum(t, 0), each)

        @tf.function
        def train(of_user):  # type: ignore[no-untyped-def]
            user, steps = self._users(of_user)
            return one(user, files.training(user, steps))

        spec = tf.TensorSpec(value.shape[1:], tf.int32)
        outputs = train.get_concrete_function(spec).structured_outputs
        zeros = tf.nest.map_structure(lambda t: tf.zeros(t.shape, t.dtype), outputs)
        _, sums = tf.while_loop(
            lambda number, _: number < tf.shape(value)[0],
            lambda number, sums: (
                number + 1,
                tf.nest.map_structure(tf.add, sums, train(value[number])),
            ),
            (tf.constant(0), zeros),
            # One after the other: side by side they would contend for the cores.
            parallel_iterations=1,
        )
        return sums

    def map_users(self, value: tf.Tensor, evaluate: EvaluateUser) -> Any:
        files = self._map_files()
        of_user = tf.function(
            lambda user: evaluate(user, files.adaptation(user), files.evaluation(user))
        )
        outputs = of_user.get_concrete_function(_USER_SPEC).structured_outputs
        specs = tf.nest.map_structure(
            lambda t: tf.TensorSpec(t.shape, t.dtype), outputs
        )
        return tf.map_fn(
            of_user, value, fn_output_signature=specs, parallel_iterations=1
        )


class _MappedStore:
    """A store's files as tensors of the graph that is being built.

    Users are numbers, int32 scalars or `[users]`.
    """

    def __init__(self, store: UserStore, model: Model):
        self._features = mapped_file(store, "features")
        self._labels = mapped_file(store, "labels")
        # First row, first evaluation row, end, is_new: int64 `[users, 4]`.
        self._bounds = mapped_file(store, "users")
        # Where rows for training begin, int64 `[users]`, if not with those to adapt on.
        self._first = None
        if store.has_training_rows:
            self._first = mapped_file(store, "training", store.first_rows)
        self._store = store
        self._model = model

    def training(self, users: tf.Tensor, steps: tf.Tensor | None) -> UserRows:
        rows = self.adaptation(users)
        if self._first is not None:
            end = tf.gather(self._bounds, users)[..., 1]
            rows = self._rows(tf.gather(self._first, users), end)
        return dataclasses.replace(rows, num_steps=steps)

    def adaptation(self, users: tf.Tensor) -> UserRows:
        bounds = tf.gather(self._bounds, users)
        return self._rows(bounds[..., 0], bounds[..., 1])

    def evaluation(self, users: tf.Tensor) -> UserRows:
        bounds = tf.gather(self._bounds, users)
        return self._rows(bounds[..., 1], bounds[..., 2])

    def _rows(self, start: tf.Tensor, end: tf.Tensor) -> UserRows:
        last_row = self._store.num_rows - 1
        scale = self._store.description.scale
        label_dtype = self._model.label_spec.dtype

        def locate(numbers: tf.Tensor) -> tf.Tensor:
            places = start[..., tf.newaxis] + tf.cast(numbers, tf.int64)
            # Row 0 of a user without rows may lie behind the last row of all.
            return tf.minimum(places, last_row)

        def features(places: tf.Tensor) -> tf.Tensor:
            x = tf.gather(self._features, places)
            x = tf.cast(x, self._model.input_spec.dtype)
            return x if scale == 1 else x * tf.constant(scale, x.dtype)

        return UserRows(
            tf.cast(end - start, tf.int32),
            locate,
            features,
            lambda places: tf.cast(tf.gather(self._labels, places), label_dtype),
        )


BLOCK_LAYOUTS = ("loop", "vectorized")
_USER_SPEC = tf.TensorSpec([], tf.int32)


def mapped_file(
    store: UserStore, name: str, array: np.ndarray | None = None
) -> tf.Tensor:
    """Returns a store's file as a memory-mapped tensor, mapped where the graph runs.

    Args:
      store: the store.
      name: `users` (int64 `[users, 4]`), `features` or `labels` (`[rows, ...]`).
      array: what is in the file; by default the store's attribute of that name.
    """
    if array is None:
        array = getattr(store, name)
    return tf.raw_ops.ImmutableConst(
        dtype=tf.as_dtype(array.dtype),
        shape=array.shape,
        memory_region_name=store.file(name),
    )


class SequenceClientData:
    """Clients as `tff.SequenceType`: any `tf.data.Dataset` of batches will do.

    A training value is a sequence of batches, each an ordered dictionary with
    `user` (int32 scalar, the same in every batch), `x` `[rows, ...]` and `y`
    `[rows, ...]`; how the rows are cut into batches has no influence. An
    evaluation value is an ordered dictionary of two such sequences, `adaptation`
    and `evaluation`.
    """

    def __init__(
        self, model: Model, fresh_labels: int = 0, *, with_steps: bool = False
    ):
        """Takes any data that a model takes.

        Args:
          model: what is trained.
          fresh_labels: of how many labels training draws a task from a user's classes,
            anew in every round (`optimization.fresh_labels`); 0 for labels as they are.
            Training labels may then be any whole numbers of at least 0.
          with_steps: whether a training value is an ordered dictionary of the sequence,
            `rows`, and of how many local steps its user does, `steps` (int32 scalar).
        """
        self._with_steps = with_steps
        self.fresh_labels = fresh_labels
        self._element_spec = collections.OrderedDict(
            user=tf.TensorSpec([], tf.int32), x=model.input_spec, y=model.label_spec
        )

    @property
    def training_type(self) -> tff.Type:
        if not self._with_steps:
            return self._sequence_type
        return tff.to_type(
            collections.OrderedDict(
                rows=self._sequence_type, steps=tff.TensorType(np.int32)
            )
        )

    @property
    def evaluation_type(self) -> tff.StructType:
        return tff.to_type(
            collections.OrderedDict(
                adaptation=self._sequence_type, evaluation=self._sequence_type
            )
        )

    @property
    def _sequence_type(self) -> tff.SequenceType:
        return tff.SequenceType(tff.types.tensorflow_to_type(self._element_spec))

    def sum_users(self, value: Any, one: TrainUser, side_by_side: TrainUsers) -> Any:
        if not self._with_steps:
            return one(*self._read(value))
        user, rows = self._read(value["rows"])
        return one(user, dataclasses.replace(rows, num_steps=value["steps"]))

    def map_users(
        self, value: Mapping[str, tf.data.Dataset], evaluate: EvaluateUser
    ) -> Any:
        # A split without rows does not say whose it is; the other does.
        user, adaptation = self._read(value["adaptation"])
        same_user, evaluation = self._read(value["evaluation"])
        return evaluate(tf.maximum(user, same_user), adaptation, evaluation)

    def _read(self, value: tf.data.Dataset) -> tuple[tf.Tensor, UserRows]:
        # Every row carries its user's number, so that one pass gathers all.
        rows = value.map(
            lambda b: (tf.fill([tf.shape(b["x"])[0]], b["user"]), b["x"], b["y"])
        )
        # Rows are gathered into one tensor whatever the batches were.
        rows = rows.unbatch().batch(_MANY_ROWS).take(1)
        empty = tuple(
            tf.zeros([0, *spec.shape[1:]], spec.dtype)
            for spec in (
                tf.TensorSpec([None], tf.int32),
                self._element_spec["x"],
                self._element_spec["y"],
            )
        )
        rows = rows.with_options(_plain_iteration())
        users, x, y = rows.reduce(empty, lambda _, all_rows: all_rows)
        user = tf.reduce_max(tf.concat([users, [0]], 0))
        num_rows = tf.shape(x)[0]
        # Row 0 may be asked for where there is none.
        x, y = (
            tf.cond(
                num_rows > 0,
                lambda t=t: t,
                lambda t=t: tf.zeros([1, *t.shape[1:]], t.dtype),
            )
            for t in (x, y)
        )
        return user, dataclasses.replace(UserRows.of(x, y), num_rows=num_rows)


def client_dataset(
    user: int, x: np.ndarray | tf.Tensor, y: np.ndarray | tf.Tensor
) -> tf.data.Dataset:
    """Returns one user's rows as a client's value for `SequenceClientData`.

    Args:
      user: the user's number; its draws are keyed by it.
      x: `[rows, ...]` features; an array of float64 becomes float32.
      y: `[rows, ...]` labels: an array of whole numbers becomes int32, of float64
        float32. Tensors stay as they are, for models that take other types.

    Returns:
      A data set of one element, an `OrderedDict` of `user` int32, `x` and `y`.
    """
    element = collections.OrderedDict(
        user=tf.constant(user, tf.int32), x=_narrow(x), y=_narrow(y, to_int=True)
    )
    return tf.data.Dataset.from_tensors(element)


def _narrow(
    value: np.ndarray | tf.Tensor, to_int: bool = False
) -> np.ndarray | tf.Tensor:
    """Returns an array in the type that models take, where NumPy makes a wider one."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.float64:
        return value.astype(np.float32)
    return value.astype(np.int32) if to_int and value.dtype.kind in "iu" else value


def _plain_iteration() -> tf.data.Options:
    """Options without tf.data's start-up work, which outweighs one short pass."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.threading.private_threadpool_size = 1
    return options


# More rows than one user holds.
_MANY_ROWS = 1 << 24

"""A personal model on a device, in Python: LiteRT and NumPy, no TensorFlow.

An app does the same with its platform's LiteRT; docs/on_device.md shows how.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import struct
import threading
from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write
from tff_perfedavg.ondevice import flatbuffer
from tff_perfedavg.ondevice.config import roles_of

# A file of personal weights: this, the SHA-256 of the model file, the number of
# weights as a little-endian uint64, the weights as little-endian float32 in their
# order, and the SHA-256 of all that.
_MAGIC = b"PFAW0001"
_HEADER = struct.Struct("<8s32sQ")
_DIGEST_BYTES = 32
_UNUSED = np.zeros([1], np.float32)


class OnDeviceModel:
    """An exported model and one user's weights.

    Every method may be called at any time and from any thread; calls on one object
    wait for each other. A new object starts from the file's initial weights.

    Attributes:
      card: what the file says of itself, a dictionary.
    """

    def __init__(self, path: pathlib.Path | str, num_threads: int = 1):
        """Loads a file that `export_tflite` wrote.

        Args:
          path: the file.
          num_threads: of the runtime. Small models are fastest with one.

        Raises:
          ModelError: if the file is missing, damaged, or was not written by
            `export_tflite`.
        """
        self._path = pathlib.Path(path)
        try:
            content = self._path.read_bytes()
        except OSError as e:
            raise errors.ModelError(f"No model can be read at {path} ({e}).") from e
        try:
            model = flatbuffer.read(content)
            card = flatbuffer.metadata(model, flatbuffer.CARD)
        except Exception as e:  # The reader of a damaged file fails anyhow.
            raise errors.ModelError(
                f"{path} is no readable TensorFlow Lite file ({type(e).__name__}: "
                f"{e}); export it again."
            ) from e
        if card is None:
            raise errors.ModelError(
                f"{path} was not exported by tff_perfedavg: it has no card. Export "
                "the model with export_tflite."
            )
        self.card = json.loads(card)
        self._digest = hashlib.sha256(content).digest()
        self._lock = threading.RLock()
        try:
            self._interpreter = Interpreter(
                model_content=content, num_threads=num_threads
            )
            names = self._interpreter.get_signature_list()
            self._runners = {
                name: self._interpreter.get_signature_runner(name) for name in names
            }
        except (RuntimeError, ValueError) as e:
            raise errors.ModelError(
                f"{path} cannot be run ({e}); export it again."
            ) from e

    @property
    def signatures(self) -> list[str]:
        """Names of the signatures."""
        return list(self._runners)

    def inputs(self, signature: str) -> dict[str, tuple[list[int], np.dtype]]:
        """Returns shape and dtype of a signature's inputs by name."""
        details = self._runners[signature].get_input_details()
        return {
            name: (detail["shape"].tolist(), np.dtype(detail["dtype"]))
            for name, detail in details.items()
        }

    @property
    def batch_size(self) -> int:
        """The most rows `adapt` takes."""
        return self.card["batch_size"]

    def infer(self, x: np.ndarray) -> np.ndarray:
        """Returns probabilities `[rows, classes]`, or outputs of a regressor.

        Args:
          x: `[rows, ...]` features, scaled as in training.

        Raises:
          DataError: if the shape is wrong or a number is not finite.
        """
        x = self._features(x)
        size = self.card["infer_batch_size"]
        outputs = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            answer = self.call("infer", x=_padded(part, size, 0))
            outputs.append(next(iter(answer.values()))[: len(part)])
        if not outputs:
            raise errors.DataError("infer: no row was given; give at least one.")
        return np.concatenate(outputs)

    def adapt(
        self, x: np.ndarray, y: np.ndarray, learning_rate: float, num_steps: int = 1
    ) -> float:
        """Takes gradient steps on a batch; returns its loss before the first.

        Args:
          x: `[rows, ...]` features, at most `batch_size` rows.
          y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor.
          learning_rate: alpha.
          num_steps: steps, all on this batch.

        Raises:
          DataError: if rows are too many, or of wrong shape, class or value; or if the
            steps led to weights that are not finite. The weights are as before.
          ConfigError: if the rate is not a finite number above 0 or `num_steps` is
            below 1.
        """
        _check_rate("learning_rate", learning_rate)
        if num_steps < 1:
            raise errors.ConfigError(
                f"num_steps is {num_steps}; it must be at least 1."
            )
        answer = self.call(
            "adapt_steps",
            **self._batch(x, y, ""),
            learning_rate=np.array([learning_rate], np.float32),
            num_steps=np.array([num_steps], np.int32),
        )
        if not answer["applied"][0]:
            raise errors.DataError(
                f"adapt: steps of {learning_rate:g} led to weights that are not "
                "finite; the weights are as before. Take a smaller learning rate."
            )
        return float(answer["loss"][0])

    def reset(self) -> None:
        """Puts the file's initial weights back."""
        self.call("reset", unused=_UNUSED)

    @property
    def weights(self) -> list[np.ndarray]:
        """The personal weights, copies."""
        return in_order(self.call("get_weights", unused=_UNUSED), "weight")

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Replaces the personal weights.

        Raises:
          DataError: if their number or a shape differs or a number is not finite.
        """
        self.call("set_weights", **self._named_weights(weights))

    def meta_update(
        self,
        weights: Sequence[np.ndarray],
        batches: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
        inner_learning_rate: float,
        outer_learning_rate: float,
    ) -> tuple[list[np.ndarray], float, float]:
        """Computes a user's part of a round of Per-FedAvg; keeps the own weights.

        Args:
          weights: w_k, the server's.
          batches: one mapping a local step, from `support`, `query` and, unless the
            file's variant is `first_order`, `hessian` to rows (x, y).
          inner_learning_rate: alpha.
          outer_learning_rate: beta.

        Returns:
          The update `w_k - w`, and the mean support and query loss.

        Raises:
          DataError: as `adapt`, and if there are no steps or more than the file takes.
          ConfigError: if a rate is not a finite number above 0.
          ModelError: if the file was exported without this signature.
        """
        most = self.card["max_local_steps"]
        if not most:
            raise errors.ModelError(
                f"{self._path} was exported without meta_update; export it with "
                "max_local_steps of at least 1."
            )
        _check_rate("inner_learning_rate", inner_learning_rate)
        _check_rate("outer_learning_rate", outer_learning_rate)
        if not 1 <= len(batches) <= most:
            raise errors.DataError(
                f"meta_update: {len(batches)} steps were given; the file takes 1 to "
                f"{most}."
            )
        inputs = self._named_weights(weights)
        for role in roles_of(self.card["variant"]):
            steps = [self._batch(*step[role], f"_{role}") for step in batches]
            for name in steps[0]:
                stacked = np.stack([step[name] for step in steps])
                inputs[name] = _padded(stacked, most, 0)
        answer = self.call(
            "meta_update",
            **inputs,
            inner_learning_rate=np.array([inner_learning_rate], np.float32),
            outer_learning_rate=np.array([outer_learning_rate], np.float32),
            num_steps=np.array([len(batches)], np.int32),
        )
        support_loss, query_loss = answer["support_loss"], answer["query_loss"]
        return in_order(answer, "delta"), float(support_loss[0]), float(query_loss[0])

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the personal weights to a file, whole or not at all."""
        flat = np.concatenate([w.ravel() for w in self.weights]).astype("<f4")
        content = _HEADER.pack(_MAGIC, self._digest, flat.size) + flat.tobytes()
        with atomic_write(pathlib.Path(path)) as file:
            file.write(content + hashlib.sha256(content).digest())

    def load(self, path: pathlib.Path | str) -> None:
        """Takes the personal weights of a file that `save` wrote.

        Raises:
          CheckpointError: naming the file, if it is missing, damaged or belongs to
            another model; the weights are as before.
        """
        try:
            content = pathlib.Path(path).read_bytes()
        except OSError as e:
            raise errors.CheckpointError(
                f"No personal weights can be read at {path} ({e})."
            ) from e
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if len(body) < _HEADER.size or not body.startswith(_MAGIC):
            raise errors.CheckpointError(
                f"{path} is no file of personal weights, or was cut short."
            )
        if hashlib.sha256(body).digest() != digest:
            raise errors.CheckpointError(
                f"{path} is damaged or was cut short; adapt the model anew."
            )
        _, model_digest, count = _HEADER.unpack_from(body)
        if model_digest != self._digest:
            raise errors.CheckpointError(
                f"{path} has the weights of another model file than {self._path}; "
                "adapt this one anew."
            )
        shapes = [w.shape for w in self.weights]
        flat = np.frombuffer(body, "<f4", offset=_HEADER.size)
        if not len(flat) == count == sum(map(math.prod, shapes)):
            raise errors.CheckpointError(
                f"{path} has {len(flat)} weights; {self._path} has "
                f"{sum(map(math.prod, shapes))}."
            )
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = zip(np.split(flat, ends), shapes, strict=True)
        self.set_weights([part.reshape(shape) for part, shape in parts])

    def call(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs a signature as it is in the file, without checks; returns copies."""
        with self._lock:
            answer = self._runners[signature](**inputs)
            return {name: np.array(value) for name, value in answer.items()}

    def _features(self, x) -> np.ndarray:
        x = np.asarray(x)
        shape = tuple(self.card["input_shape"])
        if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
            raise errors.DataError(
                f"x has shape {x.shape}; the model takes [rows, "
                f"{', '.join(map(str, shape))}]."
            )
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            row = int(np.argwhere(~np.isfinite(x))[0][0])
            raise errors.DataError(f"x has a number that is not finite in row {row}.")
        return x

    def _labels(self, y) -> np.ndarray:
        y = np.asarray(y)
        shape = tuple(self.card["label_shape"])
        if y.ndim != len(shape) + 1 or y.shape[1:] != shape:
            raise errors.DataError(
                f"y has shape {y.shape}; the model takes "
                f"[{', '.join(map(str, ('rows', *shape)))}]."
            )
        classes = self.card["num_classes"]
        if classes is None:
            if not np.isfinite(y).all():
                raise errors.DataError("y has a number that is not finite.")
            return y.astype(np.float32)
        wrong = (y < 0) | (y >= classes) | (y != np.round(y))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise errors.DataError(
                f"y has the label {y[row]} in row {row}; labels are whole numbers "
                f"from 0 to {classes - 1}."
            )
        return y.astype(np.int32)

    def _batch(self, x, y, suffix: str) -> dict[str, np.ndarray]:
        x, y = self._features(x), self._labels(y)
        if len(x) != len(y):
            raise errors.DataError(f"x has {len(x)} rows and y has {len(y)}.")
        if not 1 <= len(x) <= self.batch_size:
            raise errors.DataError(
                f"{len(x)} rows were given; the file takes 1 to {self.batch_size}. "
                "Take several steps, or export with a larger batch_size."
            )
        padding = -1 if self.card["num_classes"] is not None else np.nan
        return {
            f"x{suffix}": _padded(x, self.batch_size, 0),
            f"y{suffix}": _padded(y, self.batch_size, padding),
        }

    def _named_weights(self, weights) -> dict[str, np.ndarray]:
        wanted = [w.shape for w in self.weights]
        given = [np.asarray(w, np.float32) for w in weights]
        if [w.shape for w in given] != wanted:
            raise errors.DataError(
                f"Weights have shapes {[w.shape for w in given]}; the model's are "
                f"{wanted}."
            )
        for i, w in enumerate(given):
            if not np.isfinite(w).all():
                raise errors.DataError(f"Weight {i} has a number that is not finite.")
        return {f"weight_{i}": w for i, w in enumerate(given)}


def _padded(rows: np.ndarray, count: int, value) -> np.ndarray:
    padding = np.full([count - len(rows), *rows.shape[1:]], value, rows.dtype)
    return np.concatenate([rows, padding])


def in_order(answer: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """Returns `prefix_0`, `prefix_1`, ... of a signature's outputs."""
    count = sum(name.startswith(f"{prefix}_") for name in answer)
    return [answer[f"{prefix}_{i}"] for i in range(count)]


def _check_rate(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise errors.ConfigError(
            f"{name} is {value!r}; it must be a finite number above 0, for example "
            "0.01."
        )

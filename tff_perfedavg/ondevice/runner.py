"""Python runner of exported models: LiteRT and NumPy, no TensorFlow.

An app does the same with its platform's LiteRT; docs/on_device.md shows how.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tff_perfedavg import errors
from tff_perfedavg.ondevice import flatbuffer, given, seal, weights_file
from tff_perfedavg.ondevice.examples import Labelled, held_back, in_turns

_UNUSED = np.zeros([1], np.float32)
_MAX_INT32 = 2**31 - 1
# The first format of files whose `applied` says that the model can answer afterwards.
_CHECKED_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class GuardedAdaptation:
    """Result of a guarded adaptation: steps, and losses on the rows held back.

    Attributes:
      steps_kept: after how many steps the weights are taken; 0 if they are as before.
      steps_taken: how many were tried.
      num_rows: learned from.
      num_check_rows: held back.
      loss_before: the mean loss of the rows held back, before the first step.
      loss_after: the same with the weights kept; at most `loss_before`.
    """

    steps_kept: int
    steps_taken: int
    num_rows: int
    num_check_rows: int
    loss_before: float
    loss_after: float


class OnDeviceModel:
    """An exported model in a LiteRT interpreter, with one user's weights.

    Every method may be called at any time and from any thread; calls on one object
    wait for each other, so that all rows of one `infer` see the same weights. A new
    object starts from the file's initial weights.

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
        self.card = _card(content, self._path)
        self._is_checked = self.card.get("format_version", 1) >= _CHECKED_FORMAT
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
        # Kept, since the runtime's own follow what a call resized.
        self._inputs = {
            signature: {
                name: (detail["shape"].tolist(), np.dtype(detail["dtype"]))
                for name, detail in runner.get_input_details().items()
            }
            for signature, runner in self._runners.items()
        }
        # Rows that the initial model answers: where it does not any more, the personal
        # weights are to blame.
        probes = _probes(*self._inputs["infer"]["x"])
        self._probes = probes[_is_finite(self._infer(probes))]

    @property
    def signatures(self) -> list[str]:
        """Names of the signatures."""
        return list(self._runners)

    def inputs(self, signature: str) -> dict[str, tuple[list[int], np.dtype]]:
        """Returns shape and dtype of a signature's inputs by name.

        Raises:
          ModelError: if the file has no such signature.
        """
        if signature not in self._inputs:
            raise errors.ModelError(
                f"{self._path} has no signature {signature!r}; it has "
                f"{', '.join(self._inputs)}. Export the model with export_tflite."
            )
        return dict(self._inputs[signature])

    @property
    def batch_size(self) -> int:
        """The most rows `adapt` takes."""
        size: int = self.card["batch_size"]
        return size

    def infer(self, x: np.ndarray) -> np.ndarray:
        """Returns probabilities `[rows, classes]`, or outputs of a regressor.

        Args:
          x: `[rows, ...]` features, scaled as in training; or one row's, whose answer
            is `[classes]`.

        Raises:
          DataError: if the shape is wrong, or a number or an answer is not finite.
          ModelError: if the personal weights leave no finite answer.
        """
        x = given.numbers("x", x)
        is_one = x.shape == tuple(self.card["input_shape"])
        x = self._features(x)
        if not len(x):
            raise errors.DataError("infer: no row was given; give at least one.")
        with self._lock:
            outputs = self._infer(x)
            is_finite = _is_finite(outputs)
            if is_finite.all():
                answer: np.ndarray = outputs[0] if is_one else outputs
                return answer
            self._check_alive()
        raise errors.DataError(
            f"infer: the answer for row {int(np.argmin(is_finite))} is not finite; its "
            "features are beyond what the model can compute with. Scale them as in "
            "training."
        )

    def adapt(
        self, x: np.ndarray, y: np.ndarray, learning_rate: float, num_steps: int = 1
    ) -> float:
        """Takes gradient steps on a batch; returns its loss before the first.

        Args:
          x: `[rows, ...]` features, at most `batch_size` rows.
          y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor.
          learning_rate: alpha.
          num_steps: steps, all on this batch; at most the card's `max_adapt_steps`.

        Raises:
          DataError: if rows are too many, or of wrong shape, class or value; or if the
            steps led to weights that are not finite, or with which the loss or the
            answers for these rows are not. The weights are as before.
          ConfigError: if the rate is not a finite number above 0 or `num_steps` is
            no whole number from 1 to `max_adapt_steps`.
        """
        given.check_rate("learning_rate", learning_rate)
        given.check_steps(num_steps, self.card.get("max_adapt_steps", _MAX_INT32))
        inputs = self._batch(x, y, "")
        with self._lock:
            before = None if self._is_checked else self.weights
            answer = self.call(
                "adapt_steps",
                **inputs,
                learning_rate=np.array([learning_rate], np.float32),
                num_steps=np.array([num_steps], np.int32),
            )
            applied = bool(answer["applied"][0])
            if applied and before is not None:
                # A file of version 0.1.0 looks at the weights alone.
                rows = inputs["x"][: len(x)]
                applied = bool(_is_finite(self._infer(rows)).all())
                if not applied:
                    self.call("set_weights", **_named(before))
        if not applied:
            raise errors.DataError(
                f"adapt: steps of {learning_rate:g} led to weights or answers that are "
                "not finite; the weights are as before. Take a smaller learning rate."
            )
        return float(answer["loss"][0])

    def adapt_guarded(
        self,
        x: np.ndarray,
        y: np.ndarray,
        *,
        check: tuple[np.ndarray, np.ndarray] | None = None,
        learning_rate: float | None = None,
        num_steps: int | None = None,
    ) -> GuardedAdaptation:
        """Adapts with early stopping: keeps the step of lowest loss on rows held back.

        After each step the loss on the rows to check is looked at; the weights are then
        those with which it was lowest, as they were before the first step perhaps. More
        rows than `batch_size` are taken in batches, in turns of the classes, one a
        step; a step that does not help is undone.

        Args:
          x: `[rows, ...]` features, as many as there are.
          y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor.
          check: rows (x, y) to check on. By default, of each class of y the second row,
            the fifth and so on are held back for it. Of more than `batch_size` those
            that come first in turns of the classes.
          learning_rate: alpha; by default the card's.
          num_steps: the most steps; by default as many as the file takes, and at most
            that.

        Raises:
          ModelError: if the file was exported without this signature.
          DataError: if rows are of wrong shape, class or value, or there is none to
            learn from or to check on. The weights are as before.
          ConfigError: if the rate or `num_steps` is none, or is missing in the card.
        """
        most = self._most_guarded_steps(num_steps)
        rate = self._rate(learning_rate)
        learn = self.checked(x, y)
        if check is None:
            is_check = held_back(learn.y)
            check = learn.x[is_check], learn.y[is_check]
            learn = Labelled(learn.x[~is_check], learn.y[~is_check])
        check = self.checked(*check)
        for rows, purpose in ((learn, "learn from"), (check, "check on")):
            if not len(rows.y):
                raise errors.DataError(
                    f"adapt_guarded: there is no row to {purpose}. Give two rows of a "
                    "class at least, or rows (x, y) as `check`."
                )
        return self._adapt_guarded(learn, check, rate, most)

    def _adapt_guarded(
        self, learn: Labelled, check: Labelled, rate: float, most: int
    ) -> GuardedAdaptation:
        """In one call where the rows fit a batch, else in a call a step."""
        size = self.batch_size
        kept = in_turns(check.y)[:size]
        to_check = self._batch(check.x[kept], check.y[kept], "")
        order = in_turns(learn.y)
        batches = [
            self._batch(learn.x[rows], learn.y[rows], "")
            for rows in np.array_split(order, math.ceil(len(order) / size))
        ]
        with self._lock:
            if len(batches) == 1:
                answers = [self._guarded_call(batches[0], to_check, rate, most)]
            else:
                answers = [
                    self._guarded_call(batches[step % len(batches)], to_check, rate, 1)
                    for step in range(most)
                ]
        return GuardedAdaptation(
            steps_kept=int(sum(answer["steps_kept"][0] for answer in answers)),
            steps_taken=most,
            num_rows=len(order),
            num_check_rows=len(kept),
            loss_before=float(answers[0]["loss_before"][0]),
            loss_after=float(answers[-1]["loss_after"][0]),
        )

    def checked(self, x: np.ndarray, y: np.ndarray) -> Labelled:
        """Validates rows and returns them as the model takes them.

        Args:
          x: `[rows, ...]` features, or one row's.
          y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor, or one
            row's.

        Raises:
          DataError: if a shape, class or number is none of the model's.
        """
        rows = Labelled(self._features(x), self._labels(y))
        given.check_lengths(*rows)
        return rows

    def check_loss(self, x: np.ndarray, y: np.ndarray) -> float:
        """Returns the mean loss on some rows, with the weights as they are.

        Args:
          x: `[rows, ...]` features, at most `batch_size` rows.
          y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor.

        Raises:
          ModelError: if the file was exported without `adapt_guarded`.
          DataError: if rows are too many, or of wrong shape, class or value.
        """
        self._most_guarded_steps(None)
        rows = self._batch(x, y, "")
        answer = self._guarded_call(rows, rows, 1.0, 0)
        return float(answer["loss_before"][0])

    def _guarded_call(
        self,
        learn: Mapping[str, np.ndarray],
        check: Mapping[str, np.ndarray],
        rate: float,
        num_steps: int,
    ) -> dict[str, np.ndarray]:
        return self.call(
            "adapt_guarded",
            **learn,
            **{f"{name}_check": value for name, value in check.items()},
            learning_rate=np.array([rate], np.float32),
            num_steps=np.array([num_steps], np.int32),
        )

    def _most_guarded_steps(self, asked: int | None) -> int:
        most: int = self.card.get("max_guarded_steps", 0)
        if not most:
            raise errors.ModelError(
                f"{self._path} was exported without adapt_guarded; export it with "
                "max_guarded_steps of at least 1."
            )
        if asked is None:
            return most
        given.check_steps(asked, most)
        return int(asked)

    def _rate(self, asked: float | None) -> float:
        rate = self.card.get("inner_learning_rate") if asked is None else asked
        if rate is None:
            raise errors.ConfigError(
                f"The card of {self._path} tells no inner_learning_rate; give "
                "learning_rate."
            )
        given.check_rate("learning_rate", rate)
        return float(rate)

    def reset(self) -> None:
        """Restores the file's initial weights."""
        self.call("reset", unused=_UNUSED)

    @property
    def weights(self) -> list[np.ndarray]:
        """The personal weights, copies."""
        return in_order(self.call("get_weights", unused=_UNUSED), "weight")

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Replaces the personal weights.

        Raises:
          DataError: if their number or a shape differs, one is no array of numbers, or
            a number, or what the model answers with them, is not finite. The weights
            are as before.
        """
        inputs = self._named_weights(weights)
        with self._lock:
            before = self.weights
            self.call("set_weights", **inputs)
            if self._is_alive():
                return
            self.call("set_weights", **_named(before))
        raise errors.DataError(
            "Weights are so large that the model's answers are not finite; the weights "
            "are as before."
        )

    def meta_update(
        self,
        weights: Sequence[np.ndarray],
        batches: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
        inner_learning_rate: float,
        outer_learning_rate: float,
    ) -> tuple[list[np.ndarray], float, float]:
        """Computes the client update of a round; the personal weights stay.

        Args:
          weights: w_k, what the server holds, learned rates included.
          batches: one mapping a local step, from the algorithm's roles to rows (x, y).
          inner_learning_rate: alpha, where the file does not have it.
          outer_learning_rate: beta.

        Returns:
          The update `w_k - w`, and the mean support and query loss or, where the
          algorithm has one loss, that twice.

        Raises:
          DataError: as `adapt`, and if there are no steps or more than the file takes,
            if one lacks the rows of a role, if the weights are not the model's, or if
            the update is not finite.
          ConfigError: if a rate is not a finite number above 0.
          ModelError: if the file was exported without this signature.
        """
        most = self.card["max_local_steps"]
        if not most:
            raise errors.ModelError(
                f"{self._path} was exported without meta_update; export it with "
                "max_local_steps of at least 1."
            )
        rates = {
            "inner_learning_rate": inner_learning_rate,
            "outer_learning_rate": outer_learning_rate,
        }
        for name, rate in rates.items():
            given.check_rate(name, rate)
        taken = self.inputs("meta_update")
        answer = self.call(
            "meta_update",
            **self._named_weights(weights, "meta_update"),
            **self._steps(batches, taken, most),
            **{n: np.array([r], np.float32) for n, r in rates.items() if n in taken},
            num_steps=np.array([len(batches)], np.int32),
        )
        query = answer["query_loss"]
        losses = answer.get("support_loss", query), query
        update = in_order(answer, "delta")
        # Files of version 0.1.0 do not say `applied`.
        is_sound = all(np.isfinite(part).all() for part in [*update, *losses])
        if not is_sound or not answer.get("applied", [1])[0]:
            raise errors.DataError(
                "meta_update: steps at rates of "
                f"{' and '.join(f'{rate:g}' for rate in rates.values())} led to an "
                "update that is not finite. Leave this user out of the round, or take "
                "smaller rates."
            )
        return update, float(losses[0][0]), float(losses[1][0])

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the personal weights to a file, whole or not at all.

        Raises:
          ModelError: if the personal weights leave no finite answer.
          CheckpointError: if the file cannot be written.
        """
        weights_file.write(pathlib.Path(path), self.packed_weights())

    def packed_weights(self) -> bytes:
        """Serializes the personal weights as `save` does, without the checksum.

        Raises:
          ModelError: if the personal weights leave no finite answer.
        """
        with self._lock:
            weights = self.weights
            self._check_alive(weights)
        return weights_file.packed(weights, self._owner())

    def load(self, path: pathlib.Path | str) -> None:
        """Loads the personal weights of a file that `save` wrote.

        Raises:
          CheckpointError: naming the file, if it is missing, damaged, belongs to
            another model or leaves no finite answer; the weights are as before. A
            model exported again from the same initial weights is the same model; a
            file of version 0.1.0 belongs to the one model file it was saved with.
        """
        weights = weights_file.read(pathlib.Path(path), self._shapes(), self._owner())
        try:
            self.set_weights(weights)
        except errors.DataError as e:
            raise errors.CheckpointError(f"{path} cannot be used: {e}") from e

    def _owner(self) -> weights_file.Owner:
        return weights_file.Owner(self._path, self.card.get("model_id"), self._digest)

    def call(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs a signature as it is in the file; returns copies of its outputs.

        Nothing but names, shapes and dtypes are checked: arrays of other sizes would
        have the runtime write beyond its memory.

        Args:
          signature: its name, one of `signatures`.
          **inputs: arrays by name, of the shapes and dtypes that `inputs` tells.

        Raises:
          ModelError: if the file has no such signature.
          DataError: if an input is missing, unknown, no array of numbers, or of another
            shape or dtype.
        """
        wanted = self.inputs(signature)
        if inputs.keys() != wanted.keys():
            raise errors.DataError(
                f"{signature} was given {', '.join(sorted(inputs)) or 'nothing'}; it "
                f"takes {', '.join(sorted(wanted))}."
            )
        arrays = {}
        for name, (shape, dtype) in wanted.items():
            found = arrays[name] = given.numbers(f"{signature}: {name}", inputs[name])
            if list(found.shape) != shape or found.dtype != dtype:
                raise errors.DataError(
                    f"{signature} was given {name} of {found.dtype} "
                    f"{list(found.shape)}; it takes {dtype} {shape}."
                )
        with self._lock:
            answer = self._runners[signature](**arrays)
            return {name: np.array(value) for name, value in answer.items()}

    def _infer(self, x: np.ndarray) -> np.ndarray:
        """Runs inference in batches of the file's size."""
        size = self.card["infer_batch_size"]
        parts = [x[start : start + size] for start in range(0, len(x), size)]
        answers = [self.call("infer", x=given.padded(part, size, 0)) for part in parts]
        rows: np.ndarray = np.concatenate([next(iter(a.values())) for a in answers])
        return rows[: len(x)]

    def _is_alive(self) -> bool:
        """Whether answers are finite wherever the initial model's are."""
        if not len(self._probes):
            return True
        return bool(_is_finite(self._infer(self._probes)).all())

    def _check_alive(self, weights: Sequence[np.ndarray] = ()) -> None:
        if not all(np.isfinite(w).all() for w in weights) or not self._is_alive():
            raise errors.ModelError(
                f"{self._path}: with the personal weights as they are, answers are not "
                "finite; call reset(), or load() a file saved before."
            )

    def _shapes(self, signature: str = "set_weights") -> list[tuple[int, ...]]:
        """Those of the weights that a signature takes, in their order."""
        inputs = self.inputs(signature)
        count = sum(name.startswith("weight_") for name in inputs)
        return [tuple(inputs[f"weight_{i}"][0]) for i in range(count)]

    def _features(self, x: np.ndarray) -> np.ndarray:
        x = given.numbers("x", x)
        shape = tuple(self.card["input_shape"])
        if x.shape == shape:
            x = x[np.newaxis]
        if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
            raise errors.DataError(
                f"x has shape {x.shape}; the model takes [rows, "
                f"{', '.join(map(str, shape))}]."
            )
        if not (is_finite := np.isfinite(x.astype(np.float32))).all():
            row = int(np.argwhere(~is_finite)[0][0])
            raise errors.DataError(f"x has a number that is not finite in row {row}.")
        _, dtype = self.inputs("infer")["x"]
        if dtype.kind in "iu" and (x != np.round(x)).any():
            row = int(np.argwhere(x != np.round(x))[0][0])
            raise errors.DataError(
                f"x has a number that is no whole number in row {row}; the model takes "
                f"{dtype}."
            )
        return x.astype(dtype)

    def _labels(self, y: np.ndarray) -> np.ndarray:
        y = given.numbers("y", y)
        shape = tuple(self.card["label_shape"])
        if y.shape == shape:
            y = y[np.newaxis]
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

    def _steps(
        self,
        batches: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
        taken: Iterable[str],
        most: int,
    ) -> dict[str, np.ndarray]:
        """Batches of all steps by input, padded to as many steps as the file takes."""
        if not 1 <= len(batches) <= most:
            raise errors.DataError(
                f"meta_update: {len(batches)} steps were given; the file takes 1 to "
                f"{most}."
            )
        roles = sorted(name[2:] for name in taken if name.startswith("x_"))
        inputs = {}
        for role in roles:
            steps = []
            for number, step in enumerate(batches):
                try:
                    x, y = step[role]
                except (LookupError, TypeError, ValueError) as e:
                    raise errors.DataError(
                        f"meta_update: step {number} has no rows (x, y) of {role!r}; "
                        f"give those of {', '.join(roles)} in every step."
                    ) from e
                steps.append(self._batch(x, y, f"_{role}"))
            for name in steps[0]:
                stacked = np.stack([step[name] for step in steps])
                inputs[name] = given.padded(stacked, most, 0)
        return inputs

    def _batch(
        self, x: np.ndarray, y: np.ndarray, suffix: str
    ) -> dict[str, np.ndarray]:
        x, y = self._features(x), self._labels(y)
        given.check_lengths(x, y)
        if not 1 <= len(x) <= self.batch_size:
            raise errors.DataError(
                f"{len(x)} rows were given; the file takes 1 to {self.batch_size}. "
                "Take several steps, or export with a larger batch_size."
            )
        padding = -1 if self.card["num_classes"] is not None else np.nan
        return {
            f"x{suffix}": given.padded(x, self.batch_size, 0),
            f"y{suffix}": given.padded(y, self.batch_size, padding),
        }

    def _named_weights(
        self, weights: Sequence[np.ndarray], signature: str = "set_weights"
    ) -> dict[str, np.ndarray]:
        wanted = self._shapes(signature)
        try:
            arrays = list(weights)
        except TypeError as e:
            raise errors.DataError(
                f"Weights are {weights!r}; give a list of {len(wanted)} arrays."
            ) from e
        # What overflows is refused below.
        with np.errstate(over="ignore"):
            arrays = [
                given.numbers(f"Weight {i}", w).astype(np.float32)
                for i, w in enumerate(arrays)
            ]
        if [w.shape for w in arrays] != wanted:
            raise errors.DataError(
                f"Weights have shapes {[w.shape for w in arrays]}; the model's are "
                f"{wanted}."
            )
        for i, w in enumerate(arrays):
            if not np.isfinite(w).all():
                raise errors.DataError(f"Weight {i} has a number that is not finite.")
        return _named(arrays)


def _card(content: bytes, path: pathlib.Path) -> dict[str, Any]:
    """The card of a model file's content, which is checked before it is parsed."""
    has_checksum = seal.check(content, path)
    try:
        card = flatbuffer.metadata(flatbuffer.read(content), flatbuffer.CARD)
    except Exception as e:  # The reader of a damaged file fails anyhow.
        raise errors.ModelError(
            f"{path} is no readable TensorFlow Lite file ({type(e).__name__}: {e}); "
            "export it again."
        ) from e
    if card is None:
        raise errors.ModelError(
            f"{path} was not exported by tff_perfedavg: it has no card. Export the "
            "model with export_tflite."
        )
    try:
        found: dict[str, Any] = json.loads(card)
        needs_checksum = found.get("format_version", 1) >= _CHECKED_FORMAT
    except (ValueError, AttributeError, TypeError) as e:
        raise errors.ModelError(
            f"{path} is damaged: its card cannot be read ({e}); export it again."
        ) from e
    if needs_checksum and not has_checksum:
        raise errors.ModelError(
            f"{path} is damaged: its checksum is missing. Copy or export it again."
        )
    return found


def _probes(batch_shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Some rows in the range of scaled features."""
    shape = tuple(batch_shape[1:])
    some = np.random.default_rng(0).random((2, *shape))
    ends = np.zeros([1, *shape]), np.ones([1, *shape])
    rows: np.ndarray = np.concatenate([*ends, some])
    return rows.astype(dtype)


def _is_finite(outputs: np.ndarray) -> np.ndarray:
    """Bool `[rows]`: whether all numbers of a row are finite."""
    are_finite: np.ndarray = np.isfinite(outputs).reshape(len(outputs), -1).all(1)
    return are_finite


def _named(weights: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"weight_{i}": w for i, w in enumerate(weights)}


def in_order(answer: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """Returns `prefix_0`, `prefix_1`, ... of a signature's outputs.

    Args:
      answer: the outputs by name.
      prefix: `weight` or `delta`.
    """
    count = sum(name.startswith(f"{prefix}_") for name in answer)
    return [answer[f"{prefix}_{i}"] for i in range(count)]

"""Personal model on a device: kept examples, adapted weights and model updates.

Everything is in one directory of the user's. `state.json` names the files in use and is
replaced whole, so a process that is killed at any moment leaves what was in use before
or what is in use after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.files import atomic_write
from tff_perfedavg.ondevice import card as card_file
from tff_perfedavg.ondevice import hashed_file
from tff_perfedavg.ondevice.examples import Examples, Labelled
from tff_perfedavg.ondevice.runner import OnDeviceModel

_STATE, _EXAMPLES = "state.json", "examples.bin"
_FORMAT = 1
# Of the card: what two models have to agree on to serve the same user.
_SHARED = ("family", "num_classes", "input_shape", "label_shape", "own_labels")


@dataclasses.dataclass(frozen=True)
class PersonalAdaptation:
    """Result of `PersonalModel.adapt`: losses, steps and version.

    Attributes:
      loss_before: the mean loss of the examples held back with the weights that were in
        use.
      loss_after: the same with those in use now; at most `loss_before`.
      steps_kept: after how many steps from the initial model; None if the weights are
        those from before.
      adopted: the version that came into use; None if it is that from before.
      num_rows: examples learned from.
      num_check_rows: examples held back.
    """

    loss_before: float
    loss_after: float
    steps_kept: int | None
    adopted: int | None
    num_rows: int
    num_check_rows: int


class _Best(NamedTuple):
    """Best weights so far by loss on examples held back; no device for those in use."""

    loss: float
    steps: int | None
    device: OnDeviceModel | None
    weights: Sequence[np.ndarray]


class PersonalModel:
    """A personal model that keeps its adaptation across model updates.

    The weights in use are the initial ones adapted to the examples kept, guarded by
    those held back (`OnDeviceModel.adapt_guarded`). A new version waits until the same
    examples, held back, find it at least as good. Calls wait for each other; a
    directory belongs to one process at a time.

    Attributes:
      examples: of the user.
    """

    def __init__(
        self,
        directory: pathlib.Path | str,
        model: pathlib.Path | str | None = None,
        *,
        capacity: int | None = None,
        num_threads: int = 1,
    ):
        """Opens a user's directory, or begins one.

        Args:
          directory: of this user alone.
          model: the file that the app has now. It comes into use where there is none,
            where it holds the same model, and where the user has taught nothing yet;
            another version waits for `adapt`. Left out, what is in use stays.
          capacity: the most examples kept; by default ten batches.
          num_threads: of the runtime.

        Raises:
          ModelError: if a model cannot be read, or there is none.
          CheckpointError: if a file of the directory is damaged.
          ConfigError: if `model` is of another family, shape or an earlier version.
        """
        self._directory = pathlib.Path(directory)
        self._num_threads = num_threads
        self._lock = threading.RLock()
        found = self._read_state()
        content = None if model is None else card_file.read(pathlib.Path(model))
        if found is None:
            found = self._begin(content)
        self._state = found
        self._device = self._open(self._state["model"])
        if self._state["weights"] is not None:
            self._device.load(self._directory / self._state["weights"])
        shapes = self._device.inputs("adapt_steps")
        self.examples = Examples(
            10 * self._device.batch_size if capacity is None else capacity,
            *(np.zeros([0, *shapes[n][0][1:]], shapes[n][1]) for n in ("x", "y")),
        )
        if (self._directory / _EXAMPLES).exists():
            self.examples.load(self._directory / _EXAMPLES)
        if content is not None:
            self._offer(*content)
        self._remove_strays()

    def _begin(self, content: tuple[bytes, dict] | None) -> dict[str, Any]:
        """The first state of a directory, written."""
        if content is None:
            raise errors.ModelError(
                f"{self._directory} has no model yet; give the file of one as `model`."
            )
        name = self._keep("model", content[0])
        self._open(name)
        state = {"format": _FORMAT, "model": name, "weights": None, "candidate": None}
        self._write_state(state)
        return state

    @property
    def version(self) -> int:
        """The version in use."""
        version: int = self._device.card.get("version", 1)
        return version

    @property
    def device(self) -> OnDeviceModel:
        """The model in use, with the user's weights."""
        return self._device

    def infer(self, x: np.ndarray) -> np.ndarray:
        """As `OnDeviceModel.infer`."""
        with self._lock:
            return self._device.infer(x)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds examples to those kept, and saves them; `adapt` learns from them.

        Args:
          x: `[rows, ...]` features, or one row's.
          y: `[rows]` class numbers, or `[rows, ...]` numbers of a regressor, or one
            row's.

        Raises:
          DataError: if a shape, class or number is none of the model's; no row is kept.
          CheckpointError: if they cannot be written; they are kept until the process
            ends.
        """
        with self._lock:
            self.examples.add(*self._device.checked(x, y))
            self.examples.save(self._directory / _EXAMPLES)

    def adapt(
        self, learning_rate: float | None = None, num_steps: int | None = None
    ) -> PersonalAdaptation:
        """Adapts the initial model, and a waiting version, to all examples.

        Args:
          learning_rate: alpha; by default each version's own.
          num_steps: the most steps; by default as many as each version takes.

        Returns:
          What became of it; the weights in use are never worse on the examples held
          back than they were.

        Raises:
          DataError: if there are no examples to learn from or to check on: add two of a
            class at least.
          ConfigError: as `OnDeviceModel.adapt_guarded`.
          CheckpointError: if the weights cannot be written; those from before are in
            use.
        """
        with self._lock:
            learn, check = self.examples.to_learn(), self.examples.to_check()
            if not len(learn.y) or not len(check.y):
                raise errors.DataError(
                    f"adapt: there are {len(learn.y)} examples to learn from and "
                    f"{len(check.y)} to check on; add two of a class at least."
                )
            own, own_weights = self._device, self._device.weights
            before = _loss(own, check)
            tries = [own]
            if self._state["candidate"] is not None:
                tries.append(self._open(self._state["candidate"]))
            best = _Best(before, None, None, [])
            own.reset()
            try:
                for device in tries:
                    kept = device.adapt_guarded(
                        *learn,
                        check=check,
                        learning_rate=learning_rate,
                        num_steps=num_steps,
                    ).steps_kept
                    if (after := _loss(device, check)) <= best.loss:
                        best = _Best(after, kept, device, device.weights)
            finally:
                own.set_weights(own_weights)
            adopted = None
            if best.device is not None:
                adopted = self._use(best.device, best.weights, own_weights)
            sizes = len(learn.y), len(check.y)
            return PersonalAdaptation(before, best.loss, best.steps, adopted, *sizes)

    def _use(
        self,
        chosen: OnDeviceModel,
        weights: Sequence[np.ndarray],
        own_weights: Sequence[np.ndarray],
    ) -> int | None:
        """Writes what is in use from now on; returns its version if that is new."""
        is_new, state = chosen is not self._device, dict(self._state)
        chosen.set_weights(weights)
        try:
            if is_new:
                state |= {"model": state["candidate"], "candidate": None}
            content = hashed_file.sealed(chosen.packed_weights())
            state["weights"] = self._keep("weights", content)
            self._write_state(state)
        except BaseException:
            if not is_new:
                chosen.set_weights(own_weights)
            raise
        self._state, self._device = state, chosen
        self._remove_strays()
        return self.version if is_new else None

    def forget(self) -> None:
        """Deletes the examples and restores the initial weights."""
        with self._lock:
            state = {**self._state, "weights": None}
            self._write_state(state)
            self._state = state
            self._device.reset()
            (self._directory / _EXAMPLES).unlink(missing_ok=True)
            self.examples.clear()
            self._remove_strays()

    def _offer(self, content: bytes, card: dict) -> None:
        """Replaces the file of the same model, or stages another version."""
        own = self._device.card
        if self._state["model"] == _name("model", content):
            return
        wrong = [key for key in _SHARED if own.get(key) != card.get(key)]
        if wrong:
            raise errors.ConfigError(
                "The model given is not of the one in use: "
                + "; ".join(
                    f"{k} is {card.get(k)!r}, not {own.get(k)!r}" for k in wrong
                )
                + ". Give it a directory of its own."
            )
        if card.get("version", 1) < own.get("version", 1):
            raise errors.ConfigError(
                f"The model given is version {card.get('version', 1)}, and "
                f"{own.get('version', 1)} is in use; give a later one."
            )
        name = self._keep("model", content)
        device = self._open(name)
        is_same = card.get("model_id") == own.get("model_id")
        is_untaught = self._state["weights"] is None and not len(self.examples)
        if not is_same and not is_untaught:
            state = {**self._state, "candidate": name}
            self._write_state(state)
            self._state = state
            return
        if is_same:
            device.set_weights(self._device.weights)
        state = {**self._state, "model": name, "candidate": None}
        self._write_state(state)
        self._state, self._device = state, device

    def _open(self, name: str) -> OnDeviceModel:
        """A model of the directory; raises `ModelError` if it cannot be guarded."""
        device = OnDeviceModel(self._directory / name, self._num_threads)
        device.inputs("adapt_guarded")
        return device

    def _keep(self, kind: str, content: bytes) -> str:
        """Writes a file that is named by its content; returns its name."""
        name = _name(kind, content)
        self._write(name, content)
        return name

    def _write(self, name: str, content: bytes) -> None:
        path = self._directory / name
        try:
            with atomic_write(path, is_secret=True) as file:
                file.write(content)
        except OSError as e:
            raise errors.CheckpointError(
                f"{path} cannot be written ({e}); what is in use is as it was."
            ) from e

    def _read_state(self) -> dict[str, Any] | None:
        path = self._directory / _STATE
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as e:
            raise errors.CheckpointError(f"{path} cannot be read ({e}).") from e
        try:
            state: dict[str, Any] = json.loads(text)
            is_known = state["format"] == _FORMAT
            missing = {"model", "weights", "candidate"} - state.keys()
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise errors.CheckpointError(f"{path} is damaged ({e}).") from e
        if not is_known or missing:
            raise errors.CheckpointError(
                f"{path} is of another version of this library, or damaged."
            )
        return state

    def _write_state(self, state: dict[str, Any]) -> None:
        self._write(_STATE, json.dumps(state).encode())

    def _remove_strays(self) -> None:
        """Removes models and weights that are not in use, of killed processes too."""
        used = set(self._state.values())
        for path in self._directory.glob("*-*.*"):
            is_ours = path.name.startswith(("model-", "weights-"))
            if is_ours and path.name not in used:
                path.unlink(missing_ok=True)


def _name(kind: str, content: bytes) -> str:
    """What a file of a kind and of some content is called."""
    ending = {"model": "tflite", "weights": "bin"}[kind]
    return f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}.{ending}"


def _loss(device: OnDeviceModel, rows: Labelled) -> float:
    """The mean loss of rows, a batch at a time."""
    size, total = device.batch_size, 0.0
    for start in range(0, len(rows.y), size):
        x, y = rows.x[start : start + size], rows.y[start : start + size]
        total += device.check_loss(x, y) * len(y)
    return total / len(rows.y)

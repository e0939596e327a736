"""The adaptation that per-user results are of, as a column and in words.

Loads no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.moves import ALL, BODY, HEAD

COLUMN = "adaptation"
_SEED, _LEARNED, _HEAD = "seed", "learned", "head_tensors"
_PER_CLASS = "rows_per_class"
# Of the fields that count, how their values are read.
_KINDS = {
    "num_steps": int,
    "inner_learning_rate": float,
    "batch_size": int,
    "num_rows": int,
    _PER_CLASS: bool,
    "moves": str,
    _HEAD: int,
    "pull": float,
    _LEARNED: str,
    _SEED: int,
}
_WORDS = {
    "num_steps": "number of steps",
    "inner_learning_rate": "rate",
    "batch_size": "rows of a step",
    "num_rows": "rows of a user",
    _PER_CLASS: "rows of a user",
    "moves": "which weights move",
    _HEAD: "which weights move",
    "pull": "pull",
    _LEARNED: "learned rates",
    _SEED: "seed",
}
# In these each run may go by what it was trained for and still be compared.
_OWN = ("inner_learning_rate", "moves", _HEAD, "pull", _LEARNED)


@dataclasses.dataclass(frozen=True)
class MeasuredAdaptation:
    """The adaptation that users were evaluated with.

    Attributes:
      values: the fields of `AdaptationConfig` that count, those left at None or 0
        excepted, and `seed`, of the draws.
    """

    values: Mapping[str, Any]

    @classmethod
    def of(cls, config: AdaptationConfig, seed: int) -> MeasuredAdaptation:
        """Returns the adaptation of a configuration and a seed.

        Args:
          config: how users adapt.
          seed: of the draws.
        """
        values = {n: getattr(config, n, None) for n in _KINDS} | {_SEED: seed}
        if config.learned is not None:
            values[_LEARNED] = config.learned.grain
        if config.moves == ALL:
            values[_HEAD] = None
        if not config.pull:
            values["pull"] = None
        if not config.rows_per_class or config.num_rows is None:
            values[_PER_CLASS] = None
        return cls({name: v for name, v in values.items() if v is not None})

    @classmethod
    def parse(cls, text: str) -> MeasuredAdaptation:
        """Parses the text that `str` makes."""
        pairs = dict(pair.split("=") for pair in text.split())
        return cls({name: _KINDS[name](value) for name, value in pairs.items()})

    @classmethod
    def read(cls, per_user: pd.DataFrame, path: pathlib.Path) -> MeasuredAdaptation:
        """Returns the adaptation of a file's rows; without values if they do not tell.

        Args:
          per_user: the rows.
          path: of the file.

        Raises:
          CheckpointError: if they are of several, or it is none.
        """
        # Files of version 0.1.0 do not have it.
        if COLUMN not in per_user:
            return cls({})
        found = per_user[COLUMN].unique()
        try:
            (text,) = found
            return cls.parse(text)
        except (ValueError, LookupError, AttributeError) as e:
            raise errors.CheckpointError(
                f"{path} has {', '.join(map(repr, found))} as its {COLUMN}, which must "
                "be one for all its rows; evaluate the run again."
            ) from e

    def __str__(self) -> str:
        """Returns it as the column has it."""
        return " ".join(f"{name}={value}" for name, value in self.values.items())

    @property
    def is_known(self) -> bool:
        """Whether the file told its adaptation."""
        return bool(self.values)

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of `AdaptationConfig` that reproduce the evaluation."""
        fields = {field.name: field for field in dataclasses.fields(AdaptationConfig)}
        return {
            name: self.values.get(name, fields[name].default)
            for name in _KINDS
            if name in fields and name != _LEARNED
        }

    @property
    def seed(self) -> int:
        """The seed of the draws."""
        return self.values[_SEED]

    @property
    def sentence(self) -> str:
        """Describes the adaptation, in words that go behind the word users."""
        if not self.is_known:
            return (
                "adapt in a way that their results, of an earlier version, do not tell"
            )
        get = self.values.get
        steps = self.values["num_steps"]
        if not steps:
            return "do not adapt"
        head = f"the last {get(_HEAD)} weight tensors"
        parts = {ALL: "all weights", HEAD: head, BODY: f"all but {head}"}
        what = parts[self.values["moves"]]
        told = f"adapt {what} in {steps} step{'s' * (steps != 1)} at "
        rate = f"{get('inner_learning_rate'):g}"
        told += f"learned rates times {rate}" if get(_LEARNED) else f"rate {rate}"
        if get("pull"):
            told += f", pulled back by {get('pull'):g}"
        if get("batch_size"):
            told += f", on {get('batch_size')} rows a step"
        if get("num_rows"):
            of = "a class" if get(_PER_CLASS) else "each"
            told += f", of {get('num_rows')} rows {of} at most"
        return told + (f" (seed {self.seed})" if self.seed else "")


def sentences(measured: Mapping[str, MeasuredAdaptation]) -> list[str]:
    """Describes the adaptations of runs, those of like runs in one sentence.

    Args:
      measured: by what the runs are called.
    """
    runs_of: dict[str, list[str]] = {}
    for label, of_run in measured.items():
        runs_of.setdefault(of_run.sentence, []).append(label)
    if len(runs_of) == 1:
        return [f"Users {sentence}." for sentence in runs_of]
    return [f"{', '.join(labels)}: users {told}." for told, labels in runs_of.items()]


def differences(
    measured: Sequence[MeasuredAdaptation], own: Sequence[AdaptationConfig]
) -> list[str]:
    """Describes the differences between the runs' adaptations in evaluation.

    Every run may go by its own rate, learned or not, its own moves and its own pull.

    Args:
      measured: the adaptation of each run's results.
      own: the one that each run was trained for.
    """
    if not all(of_run.is_known for of_run in measured):
        # Runs of which none tells are as alike as their steps.
        return ["version"] if any(of_run.is_known for of_run in measured) else []
    trained_for = [MeasuredAdaptation.of(config, 0) for config in own]
    found = []
    for name in _KINDS:
        values = [of_run.values.get(name) for of_run in measured]
        is_own = name in _OWN and values == [o.values.get(name) for o in trained_for]
        if len(set(values)) > 1 and not is_own:
            found.append(_WORDS[name])
    return [*dict.fromkeys(found)]

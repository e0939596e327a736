"""Dataclass fields that carry help, choices and bounds: for flags, checks and docs."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tff_perfedavg import errors

Choices = Sequence[str] | Callable[[], Sequence[str]]


def setting(
    default: Any,
    help_text: str,
    choices: Choices = (),
    lowest: float | None = None,
    unrecorded: Any = None,
) -> Any:
    """Returns a dataclass field with help, choices and a lower bound.

    Args:
      default: its default.
      help_text: what it is, for people who set it.
      choices: its known values, or a function that returns them; empty for any.
      lowest: the smallest number that a flag of it takes; None for any.
      unrecorded: what a record without it means, where that is not the default: what
        the default was once.
    """
    metadata = {
        "help": help_text,
        "choices": choices,
        "lowest": lowest,
        "unrecorded": unrecorded,
    }
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(owner: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a dataclass that `setting` made, by name, in order."""
    return {f.name: f for f in dataclasses.fields(owner) if "help" in f.metadata}


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """Returns the known values of a field; none if any will do."""
    choices = field.metadata["choices"]
    return tuple(choices() if callable(choices) else choices)


def kind_of(owner: type, name: str) -> type:
    """Returns the type of a field's values, None left out.

    Args:
      owner: the dataclass.
      name: the field's name.
    """
    hint = typing.get_type_hints(owner)[name]
    if isinstance(hint, types.UnionType):
        (hint,) = (t for t in typing.get_args(hint) if t is not types.NoneType)
    return hint


def check_choices(settings: Any) -> None:
    """Raises `ConfigError` if a field has another value than its known ones."""
    for name, field in settings_of(type(settings)).items():
        known, value = choices_of(field), getattr(settings, name)
        if known and value is not None:
            errors.check_known(name, value, known)


def values_of(settings: Any) -> Mapping[str, Any]:
    """Returns the values of the fields that `setting` made, by name."""
    return {name: getattr(settings, name) for name in settings_of(type(settings))}

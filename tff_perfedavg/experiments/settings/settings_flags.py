"""Command-line flags generated from dataclass fields: name, default and help."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from tff_perfedavg.settings import choices_of, kind_of, settings_of

_DEFINE = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define(
    owner: type, flag_values: flags.FlagValues, *, is_given: bool = True
) -> None:
    """Defines a flag for each field of a dataclass that `setting` made.

    Args:
      owner: the dataclass.
      flag_values: where the flags are defined.
      is_given: whether a flag's default is the field's; else it is None.
    """
    for name, field in settings_of(owner).items():
        default = field.default if is_given else None
        define_one(field, kind_of(owner, name), default, flag_values)


def define_one(
    field: dataclasses.Field, kind: type, default: Any, flag_values: flags.FlagValues
) -> None:
    """Defines a field's flag.

    Args:
      field: made by `setting`; gives name, help, choices and lower bound.
      kind: of its values: `bool`, `int`, `float` or `str`.
      default: the flag's; None for a flag that is not given.
      flag_values: where the flag is defined.
    """
    name, text, known = field.name, field.metadata["help"], choices_of(field)
    lowest = field.metadata["lowest"]
    if known:
        flags.DEFINE_enum(name, default, known, text, flag_values=flag_values)
    elif lowest is not None:
        _DEFINE[kind](name, default, text, lower_bound=lowest, flag_values=flag_values)
    else:
        _DEFINE[kind](name, default, text, flag_values=flag_values)


def read(owner: type, flag_values: flags.FlagValues) -> Any:
    """Builds a dataclass from the parsed flags.

    Args:
      owner: the dataclass; `setting` made all of its fields.
      flag_values: the parsed flags.
    """
    return owner(**{name: flag_values[name].value for name in settings_of(owner)})

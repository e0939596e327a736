"""Command-line flags shared by several commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.moves import ALL, PARTS

# From flags to fields of `AdaptationConfig`.
_STEPS = {
    "inner_learning_rate": "inner_learning_rate",
    "adaptation_steps": "num_steps",
    "adaptation_batch_size": "batch_size",
    "adaptation_rows": "num_rows",
    "adaptation_rows_per_class": "rows_per_class",
}
_MOVES = {
    "adaptation_moves": "moves",
    "adaptation_head_tensors": "head_tensors",
    "adaptation_pull": "pull",
}


def define_root(flag_values: flags.FlagValues) -> None:
    """Defines the flag of the directory of runs."""
    flags.DEFINE_string(
        "root_output_dir", "results", "Directory of all runs.", flag_values=flag_values
    )


def define_data_dir(flag_values: flags.FlagValues) -> None:
    """Defines the flag of the directory of data files."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where data files are; by default $TFF_PERFEDAVG_DATA_DIR.",
        flag_values=flag_values,
    )


def define_adaptation(
    flag_values: flags.FlagValues, rate_of: str, rows: str = "all a user has"
) -> None:
    """Defines the flags of the adaptation, and the seed of its batches.

    Args:
      flag_values: where the flags are defined.
      rate_of: whose learning rate is taken by default.
      rows: which rows a step takes by default.
    """
    flags.DEFINE_float(
        "inner_learning_rate",
        None,
        f"alpha; by default {rate_of} own.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "adaptation_steps", 5, "Gradient steps per user.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "adaptation_batch_size",
        None,
        f"Rows per step; by default {rows}.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "base_random_seed",
        0,
        "Seed of adaptation batches.",
        lower_bound=0,
        flag_values=flag_values,
    )


def define_baselines(flag_values: flags.FlagValues) -> None:
    """Defines the flag of whether baselines are shown."""
    flags.DEFINE_bool(
        "baselines",
        True,
        "Whether to show what label shares and training alone give.",
        flag_values=flag_values,
    )


def define_rows_per_class(flag_values: flags.FlagValues) -> None:
    """Defines `--adaptation_rows_per_class`: stratified subsampling of rows."""
    flags.DEFINE_bool(
        "adaptation_rows_per_class",
        False,
        "Whether adaptation_rows are of each class.",
        flag_values=flag_values,
    )


def define_what_moves(flag_values: flags.FlagValues) -> None:
    """Defines the flags of which weights adapt, and of their pull to the start."""
    flags.DEFINE_enum(
        "adaptation_moves",
        None,
        PARTS,
        "Which weights move; by default those that moved in training.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "adaptation_head_tensors",
        None,
        "How many of the last weight tensors are the head; by default as trained.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "adaptation_pull",
        None,
        "Pull of the weights to where they started; by default as trained.",
        flag_values=flag_values,
    )


def adaptation_changes(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Returns the adaptation's flags that were given, as fields of `AdaptationConfig`.

    Raises:
      ConfigError: naming the field that is out of range.
    """
    return _checked_changes(flag_values, _STEPS | _MOVES)


def what_moves(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Returns the flags of `define_what_moves` that were given, as such fields."""
    return _checked_changes(flag_values, _MOVES)


def check_head_moves(
    changes: Mapping[str, Any], trained: Sequence[AdaptationConfig]
) -> None:
    """Raises `ConfigError` if a head's size is given where all weights move.

    Args:
      changes: of `adaptation_changes` or `what_moves`.
      trained: how the users of each run adapt where these say nothing; one of them
        that has a head will do.
    """
    moves = [changes.get("moves", config.moves) for config in trained]
    if "head_tensors" in changes and all(part == ALL for part in moves):
        others = " or ".join(part for part in PARTS if part != ALL)
        raise errors.ConfigError(
            f"adaptation_head_tensors is {changes['head_tensors']}, but all weights "
            f"move; leave it out, or say that adaptation_moves is {others}."
        )


def _checked_changes(flag_values, fields: dict[str, str]) -> dict[str, Any]:
    given = {
        field: flag_values[name].value
        for name, field in fields.items()
        if name in flag_values
    }
    changes = {field: value for field, value in given.items() if value is not None}
    # Without a rate given, one with which any pull will do: the run's own is checked
    # when the run is there.
    AdaptationConfig(**{"inner_learning_rate": 1e-9, **changes})
    return changes

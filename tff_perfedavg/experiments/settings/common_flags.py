"""Flags that several commands have alike."""

from __future__ import annotations

from absl import flags


def define_root(flag_values: flags.FlagValues) -> None:
    """Defines where the runs are."""
    flags.DEFINE_string(
        "root_output_dir", "results", "Directory of all runs.", flag_values=flag_values
    )


def define_data_dir(flag_values: flags.FlagValues) -> None:
    """Defines where the files of data sets are."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where data files are; by default $TFF_PERFEDAVG_DATA_DIR.",
        flag_values=flag_values,
    )


def define_adaptation(
    flag_values: flags.FlagValues, rate_of: str, rows: str = "all a user has"
) -> None:
    """Defines how users adapt, and the seed of their batches.

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

"""Divides a data set among users and writes them as a store, or describes a store.

  prepare_data.py --dataset=mnist --partition=dirichlet --output_dir=stores/mnist
  prepare_data.py --describe --output_dir=stores/mnist

Prints who holds what, and draws it beside the store as OUTPUT_DIR.png. Every flag but
--dataset and --output_dir defaults to what suits the data set.
"""

import dataclasses
import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.data import config as config_lib
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.experiments.settings import command


def define(flag_values):
    flags.DEFINE_string(
        "output_dir",
        None,
        "The store's directory.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "describe", False, "Describe the store that is there.", flag_values=flag_values
    )
    flags.DEFINE_bool(
        "verify", False, "Check the hashes of the store, too.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where data files are; by default $TFF_PERFEDAVG_DATA_DIR.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "dataset", None, config_lib.DATASETS, "Data set.", flag_values=flag_values
    )
    flags.DEFINE_enum(
        "partition",
        None,
        config_lib.PARTITIONS,
        "How it is divided.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_users",
        None,
        "Users to make, seen and new together.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_new_users",
        None,
        "How many are held out of training.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "a",
        None,
        "The paper's rule: adaptation rows per class, even.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "evaluation_a", None, "The same for evaluation rows.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "concentration",
        None,
        "Of dirichlet and quantity_skew.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "rows_per_user", None, "Of dirichlet.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "classes_per_user", None, "Of k_classes.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "evaluation_fraction",
        None,
        "Share of a user's rows kept for evaluation.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "min_rows",
        None,
        "Natural users with fewer rows are left out.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "synthetic_alpha",
        None,
        "How unlike users' models are.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "synthetic_beta",
        None,
        "How unlike users' features are.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "seed", None, "Seed of every draw.", lower_bound=0, flag_values=flag_values
    )


def main(flag_values):
    path = pathlib.Path(flag_values.output_dir)
    if not flag_values.describe:
        if flag_values.dataset is None:
            raise errors.ConfigError(
                "--dataset is missing; known: " + ", ".join(config_lib.DATASETS) + "."
            )
        names = {field.name for field in dataclasses.fields(DataConfig)} - {"dataset"}
        given = {name: flag_values[name].value for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        config = DataConfig.of(flag_values.dataset, **given)
        if config.dataset in config_lib.FROM_TFF:
            command.load_frameworks()
    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.experiments.assemble.prepare import prepare
    from tff_perfedavg.experiments.report import store_summary

    if flag_values.describe:
        store = UserStore.open(path)
    else:
        store = prepare(config, path, flag_values.data_dir)
        store_summary.draw(store, path.parent / f"{path.name}.png")
    if flag_values.verify:
        store.verify()
        print("Every file is as it was written.")
    print(store_summary.summary(store))


if __name__ == "__main__":
    command.run(main, define)

"""Divides a data set among users and writes them as a store, or describes a store.

  prepare_data.py --dataset=mnist --partition=dirichlet --output_dir=stores/mnist
  prepare_data.py --describe --output_dir=stores/mnist

Prints who holds what, and draws it beside the store as OUTPUT_DIR.png. Every flag but
--dataset and --output_dir defaults to what suits the data set.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.data import config as config_lib
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.experiments.settings import command, common_flags, settings_flags
from tff_perfedavg.settings import settings_of


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
    common_flags.define_data_dir(flag_values)
    settings_flags.define(DataConfig, flag_values, is_given=False)
    flags.adopt_module_key_flags(settings_flags, flag_values)
    flags.adopt_module_key_flags(common_flags, flag_values)


def main(flag_values):
    path = pathlib.Path(flag_values.output_dir)
    if not flag_values.describe:
        if flag_values.dataset is None:
            raise errors.ConfigError(
                "--dataset is missing; known: " + ", ".join(config_lib.DATASETS) + "."
            )
        given = {name: flag_values[name].value for name in settings_of(DataConfig)}
        given = {name: value for name, value in given.items() if value is not None}
        config = DataConfig.of(**given)
        config.check_given(given)
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

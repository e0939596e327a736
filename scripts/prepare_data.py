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

_OUTPUT = flags.DEFINE_string(
    "output_dir", None, "The store's directory.", required=True
)
_DESCRIBE = flags.DEFINE_bool("describe", False, "Describe the store that is there.")
_VERIFY = flags.DEFINE_bool("verify", False, "Check the hashes of the store, too.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where data files are; by default $TFF_PERFEDAVG_DATA_DIR."
)
_DATASET = flags.DEFINE_enum("dataset", None, config_lib.DATASETS, "Data set.")
flags.DEFINE_enum("partition", None, config_lib.PARTITIONS, "How it is divided.")
flags.DEFINE_integer("num_users", None, "Users to make, seen and new together.")
flags.DEFINE_integer("num_new_users", None, "How many are held out of training.")
flags.DEFINE_integer("a", None, "The paper's rule: adaptation rows per class, even.")
flags.DEFINE_integer("evaluation_a", None, "The same for evaluation rows.")
flags.DEFINE_float("concentration", None, "Of dirichlet and quantity_skew.")
flags.DEFINE_integer("rows_per_user", None, "Of dirichlet.")
flags.DEFINE_integer("classes_per_user", None, "Of k_classes.")
flags.DEFINE_float(
    "evaluation_fraction", None, "Share of a user's rows kept for evaluation."
)
flags.DEFINE_integer("min_rows", None, "Natural users with fewer rows are left out.")
flags.DEFINE_float("synthetic_alpha", None, "How unlike users' models are.")
flags.DEFINE_float("synthetic_beta", None, "How unlike users' features are.")
flags.DEFINE_integer("seed", None, "Seed of every draw.", lower_bound=0)


def main():
    path = pathlib.Path(_OUTPUT.value)
    if not _DESCRIBE.value:
        if _DATASET.value is None:
            raise errors.ConfigError(
                "--dataset is missing; known: " + ", ".join(config_lib.DATASETS) + "."
            )
        names = {field.name for field in dataclasses.fields(DataConfig)} - {"dataset"}
        given = {name: flags.FLAGS[name].value for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        config = DataConfig.of(_DATASET.value, **given)
        if config.dataset in config_lib.FROM_TFF:
            command.load_frameworks()
    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.experiments.assemble.prepare import prepare
    from tff_perfedavg.experiments.report import store_summary

    if _DESCRIBE.value:
        store = UserStore.open(path)
    else:
        store = prepare(config, path, _DATA_DIR.value)
        store_summary.draw(store, path.parent / f"{path.name}.png")
    if _VERIFY.value:
        store.verify()
        print("Every file is as it was written.")
    print(store_summary.summary(store))


if __name__ == "__main__":
    command.run(main)

"""Meta-trains an initial model and writes it with its metrics.

Writes, under --root_output_dir, checkpoints/NAME/model.npz (the initial model),
results/NAME/experiment.metrics.csv (a line per round), evaluation.metrics.csv (the
users before and after adapting, every --rounds_per_evaluation), both as
experiment.metrics.jsonl, hparams.csv, and logdir/NAME for TensorBoard, where NAME is
--experiment_name. A run that was stopped goes on where it was when the same command is
given again. A file of flags, one a line, is read with --flagfile=FILE.
"""

import dataclasses
import pathlib

from absl import flags

from tff_perfedavg.data.config import DATASETS, PARTITIONS
from tff_perfedavg.optimization.config import VARIANTS
from tff_perfedavg.programs import command
from tff_perfedavg.programs import experiment as experiment_lib
from tff_perfedavg.programs.experiment import Experiment
from tff_perfedavg.programs.run_paths import RunPaths
from tff_perfedavg.programs.training_options import TrainingOptions
from tff_perfedavg.simulation.client_forms import CLIENT_FORMS

_DEFAULTS = Experiment()

_NAME = flags.DEFINE_string("experiment_name", None, "Name of the run.", required=True)
_ROOT = flags.DEFINE_string("root_output_dir", "results", "Directory of all runs.")
flags.DEFINE_enum(
    "dataset", _DEFAULTS.dataset, DATASETS, "Data set, divided in its own way."
)
flags.DEFINE_enum(
    "partition", None, PARTITIONS, "How it is divided; the next flags say by what."
)
for _field in experiment_lib.DIVISION[1:]:
    _define = flags.DEFINE_float if _field == "concentration" else flags.DEFINE_integer
    _define(_field, None, "As in prepare_data.py.")
flags.DEFINE_string(
    "store", _DEFAULTS.store, "A store of scripts/prepare_data.py, instead."
)
flags.DEFINE_enum("model", _DEFAULTS.model, experiment_lib.MODELS, "Model.")
flags.DEFINE_enum(
    "algorithm", _DEFAULTS.algorithm, experiment_lib.ALGORITHMS, "Algorithm."
)
flags.DEFINE_enum(
    "variant", _DEFAULTS.variant, VARIANTS, "Per-FedAvg's form of the meta-gradient."
)
flags.DEFINE_float(
    "inner_learning_rate", _DEFAULTS.inner_learning_rate, "alpha, of adaptation."
)
flags.DEFINE_float(
    "outer_learning_rate",
    _DEFAULTS.outer_learning_rate,
    "beta, of each local step (of FedAvg, too).",
)
flags.DEFINE_integer(
    "num_local_steps", _DEFAULTS.num_local_steps, "tau, local steps per round."
)
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Rows of every batch.")
flags.DEFINE_integer("total_rounds", _DEFAULTS.total_rounds, "Rounds of training.")
flags.DEFINE_integer(
    "clients_per_round", _DEFAULTS.clients_per_round, "Users per round."
)
flags.DEFINE_enum(
    "client_weighting",
    _DEFAULTS.client_weighting,
    experiment_lib.CLIENT_WEIGHTINGS,
    "What a user counts for in the mean.",
)
flags.DEFINE_enum(
    "client_form",
    _DEFAULTS.client_form,
    CLIENT_FORMS,
    "Users per TFF client: speed only.",
)
flags.DEFINE_integer(
    "block_size", _DEFAULTS.block_size, "The most users per TFF client; 0 to choose."
)
flags.DEFINE_integer(
    "base_random_seed",
    _DEFAULTS.base_random_seed,
    "Seed of the partition, the initial weights, cohorts and batches.",
)
flags.DEFINE_integer("rounds_per_checkpoint", 50, "Rounds between saved states.")
flags.DEFINE_integer("checkpoints_kept", 3, "How many of the newest are kept.")
flags.DEFINE_integer(
    "rounds_per_evaluation", 50, "Rounds between evaluations; 0 for none."
)
flags.DEFINE_integer(
    "adaptation_steps", 1, "Steps at which users are measured in these."
)
flags.DEFINE_integer(
    "num_evaluation_users", 200, "The most users measured, seen and new; 0 for all."
)
flags.DEFINE_string(
    "best_metric",
    "",
    "Keep the best evaluation's model by this, too, for example new/accuracy/1.",
)
flags.DEFINE_bool(
    "resume", True, "Go on with the run of this name; --noresume begins it anew."
)


def main():
    experiment_lib.check_experiment_name(_NAME.value)
    experiment, options = (
        kind(**{f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(kind)})
        for kind in (Experiment, TrainingOptions)
    )
    command.load_frameworks()
    from tff_perfedavg.programs import training
    from tff_perfedavg.simulation.local_runtime import use_local_runtime

    paths = RunPaths(pathlib.Path(_ROOT.value), _NAME.value)
    use_local_runtime()
    training.train_and_save(experiment, paths, options)
    print("Written:", paths.model, paths.metrics, paths.hparams, sep="\n  ")


if __name__ == "__main__":
    command.run(main)

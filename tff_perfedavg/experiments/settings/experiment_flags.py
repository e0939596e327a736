"""The flags that say what an experiment is, one for each field of `Experiment`."""

from __future__ import annotations

import dataclasses

from absl import flags

from tff_perfedavg.algorithms.per_fed_avg import VARIANTS
from tff_perfedavg.algorithms.registry import ALGORITHMS
from tff_perfedavg.data.config import DATASETS, PARTITIONS
from tff_perfedavg.experiments.settings import experiment as experiment_lib
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.federated.client_forms import CLIENT_FORMS


def define(flag_values: flags.FlagValues) -> None:
    """Defines the flags on the values given, before they are parsed."""
    defaults = Experiment()
    flags.DEFINE_enum(
        "dataset",
        defaults.dataset,
        DATASETS,
        "Data set, divided in its own way.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "partition",
        None,
        PARTITIONS,
        "How it is divided; the next flags say by what.",
        flag_values=flag_values,
    )
    for field in experiment_lib.DIVISION[1:]:
        define_number = (
            flags.DEFINE_float if field == "concentration" else flags.DEFINE_integer
        )
        define_number(field, None, "As in prepare_data.py.", flag_values=flag_values)
    flags.DEFINE_string(
        "store",
        defaults.store,
        "A store of scripts/prepare_data.py, instead.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "model",
        defaults.model,
        f"{', '.join(experiment_lib.MODELS)}, or your own: FILE.py:FUNCTION, from "
        "(input_shape, num_outputs) to a Keras model.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "algorithm",
        defaults.algorithm,
        tuple(ALGORITHMS),
        "Algorithm.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "variant",
        defaults.variant,
        VARIANTS,
        "Per-FedAvg's form of the meta-gradient.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "inner_learning_rate",
        defaults.inner_learning_rate,
        "alpha, of adaptation.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "outer_learning_rate",
        defaults.outer_learning_rate,
        "beta, of each local step (of FedAvg, too).",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_local_steps",
        defaults.num_local_steps,
        "tau, local steps per round.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "batch_size",
        defaults.batch_size,
        "Rows of every batch.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "total_rounds",
        defaults.total_rounds,
        "Rounds of training.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "clients_per_round",
        defaults.clients_per_round,
        "Users per round.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "cohort_sampling",
        defaults.cohort_sampling,
        experiment_lib.COHORT_SAMPLINGS,
        "fixed: cohorts of one size, by the seed; poisson: by a secret of the run, as "
        "differential privacy wants it; auto: poisson with privacy, fixed without.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "client_weighting",
        defaults.client_weighting,
        experiment_lib.CLIENT_WEIGHTINGS,
        "What a user counts for in the mean.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "aggregator",
        defaults.aggregator,
        experiment_lib.AGGREGATORS,
        "What is done to users' updates on their way into the mean.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "clipping_norm", None, "Of clip and dp_fixed.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "noise_multiplier",
        defaults.noise_multiplier,
        "Of dp_fixed and dp_adaptive: the noise's standard deviation over the norm.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "client_form",
        defaults.client_form,
        CLIENT_FORMS,
        "Users per TFF client: speed only.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "block_size",
        defaults.block_size,
        "The most users per TFF client; 0 to choose.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "base_random_seed",
        defaults.base_random_seed,
        "Seed of the partition, the initial weights, cohorts and batches.",
        flag_values=flag_values,
    )


def experiment(flag_values: flags.FlagValues) -> Experiment:
    """Returns the experiment of the parsed flags.

    Raises:
      ConfigError: naming the field that is out of range.
    """
    return Experiment(**{name: flag_values[name].value for name in names()})


def names() -> list[str]:
    """Returns the flags' names."""
    return [field.name for field in dataclasses.fields(Experiment)]

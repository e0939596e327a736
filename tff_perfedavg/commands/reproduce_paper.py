"""Runs the comparison of the Per-FedAvg paper (arXiv 2002.07948, table 1).

FedAvg + update and the three variants of Per-FedAvg on the paper's partition and its
other distribution, tau 10 and 4, alpha 0.01 and 0.001, three seeds. The flags choose a
part of it; parts that are there, under --root_output_dir, are not run again, and the
table is of all that are there. Beside the methods stand baselines of the part chosen:
what label shares give without a gradient, with FedAvg's model, and what users reach by
training alone. Writes paper_table.csv and paper_table.tex.
"""

import dataclasses
import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import paper_methods
from tff_perfedavg.data.config import DATASETS, PAPER, PAPER_DIFF_HETERO
from tff_perfedavg.experiments.settings import command, common_flags
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.optimization.config import AdaptationConfig


def define(flag_values):
    flags.DEFINE_string(
        "root_output_dir",
        "results/paper",
        "Directory of the runs and the table.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "dataset", "mnist,cifar10", "Data sets of ten classes.", flag_values=flag_values
    )
    flags.DEFINE_list(
        "partition",
        "paper,paper_diff_hetero",
        "The paper's distributions.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "num_local_steps", "10,4", "Values of tau.", flag_values=flag_values
    )
    flags.DEFINE_list(
        "inner_learning_rate", "0.01,0.001", "Values of alpha.", flag_values=flag_values
    )
    flags.DEFINE_list(
        "method", ",".join(paper_methods()), "Algorithms.", flag_values=flag_values
    )
    flags.DEFINE_list("seeds", "0,1,2", "One run each.", flag_values=flag_values)
    flags.DEFINE_integer(
        "total_rounds", 1000, "Rounds per run.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "clients_per_round", 10, "Users per round.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "batch_size", 40, "Rows of every batch.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "outer_learning_rate",
        0.001,
        "beta, of every local step.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "adaptation_steps",
        5,
        "Adaptation steps measured; the table shows one.",
        1,
        flag_values=flag_values,
    )
    common_flags.define_baselines(flag_values)
    flags.adopt_module_key_flags(common_flags, flag_values)


def main(flag_values):
    for name, known in (
        ("dataset", DATASETS),
        ("partition", (PAPER, PAPER_DIFF_HETERO)),
        ("method", paper_methods()),
    ):
        for value in flag_values[name].value:
            errors.check_known(name, value, known)
    chosen = {
        "partitions": flag_values.partition,
        "num_local_steps": command.numbers(flag_values, "num_local_steps", int),
        "inner_learning_rates": command.numbers(
            flag_values, "inner_learning_rate", float
        ),
    }
    base = Experiment(
        total_rounds=flag_values.total_rounds,
        clients_per_round=flag_values.clients_per_round,
        batch_size=flag_values.batch_size,
        outer_learning_rate=flag_values.outer_learning_rate,
    )
    seeds = command.numbers(flag_values, "seeds", int)
    for rate in chosen["inner_learning_rates"]:
        AdaptationConfig(rate, flag_values.adaptation_steps)
    for tau in chosen["num_local_steps"]:
        dataclasses.replace(base, num_local_steps=tau)
    command.load_frameworks()
    import pandas as pd

    from tff_perfedavg.experiments.report import tables as report
    from tff_perfedavg.experiments.study import paper_table, study, study_baselines
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    part = paper_table.Part(
        flag_values.dataset, **chosen, methods=flag_values.method, seeds=seeds
    )
    steps = flag_values.adaptation_steps
    runs = paper_table.paper_runs(part, base, steps)
    use_local_runtime()
    root = pathlib.Path(flag_values.root_output_dir)
    study.run_all(runs, base, root)
    per_user = study.read_study(root)
    if flag_values.baselines:
        study_baselines.run_baselines(runs, root)
        baselines = study_baselines.read_baselines(root, runs)
        if baselines is not None:
            rows = paper_table.baseline_rows(baselines, runs, [0, 1])
            per_user = pd.concat([per_user, rows], ignore_index=True)
    summary = paper_table.summarize_paper(per_user, [0, 1], study.read_diverged(root))
    for step, when in ((0, "Before adapting"), (1, "After one step of adaptation")):
        print(f"\n{when}: accuracy %, mean ± over seeds (± over users)")
        methods_table, baselines_table = paper_table.split(
            paper_table.lay_out(summary, step)
        )
        print(methods_table.to_string())
        if baselines_table.shape[1]:
            print(f"\n{when}, baselines:\n{baselines_table.to_string()}")
    print(f"\n{report.HALF_WIDTHS}")
    files = paper_table.write_table(summary, 1, root)
    print("\nWritten:", *files, sep="\n  ")

"""Shows on real data what a meta-trained initial model is worth once adapted.

Trains FedAvg and the three variants of Per-FedAvg on handwritten digits, lets every
user, seen and new, adapt the result on its own rows, and measures it on rows of the
user that were never used. Baselines tell what knowing a user's labels gives by itself,
and training alone. First the digits are divided by the paper's rule: users differ in
which digits they hold. Then each user's five digits have labels of the user's own, in
an order of its own: users differ in what labels mean, and before adapting every model
is at chance.
"""

import pathlib

from absl import flags

from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.experiment import Experiment

# Every user has labels of its own, and training draws them afresh.
_OWN_LABELS = {
    "partition": "iid",
    "num_users": 30,
    "num_new_users": 10,
    "own_labels": 5,
    "num_local_steps": 5,
    "batch_size": 10,
}
# The best rates for the users seen after one step, of inner 0.1, 0.3, 1 and outer 0.03,
# 0.1, 0.3, 1, on a seed that the demo does not show.
_OWN_LABELS_METHODS = {
    "fed_avg": {
        "algorithm": "fed_avg",
        "inner_learning_rate": 0.3,
        "outer_learning_rate": 0.3,
    },
    "first_order": {
        "variant": "first_order",
        "inner_learning_rate": 0.3,
        "outer_learning_rate": 0.3,
    },
    "exact": {
        "variant": "exact",
        "inner_learning_rate": 0.3,
        "outer_learning_rate": 0.1,
    },
}


def define(flag_values):
    flags.DEFINE_string(
        "root_output_dir",
        "results/demo",
        "Directory of the table and the figure.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_seeds", 3, "Runs per algorithm.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "total_rounds", 300, "Rounds per run.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "adaptation_steps",
        5,
        "Adaptation steps per user.",
        lower_bound=1,
        flag_values=flag_values,
    )


def main(flag_values):
    command.load_frameworks()
    import pandas as pd

    from tff_perfedavg.experiments.evaluation import metrics
    from tff_perfedavg.experiments.files.rows import write_rows
    from tff_perfedavg.experiments.report import tables as report
    from tff_perfedavg.experiments.study import comparison
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    rounds, root = flag_values.total_rounds, pathlib.Path(flag_values.root_output_dir)
    steps, seeds = flag_values.adaptation_steps, range(flag_values.num_seeds)

    def show(title, prefix, base, methods=None):
        """Trains, evaluates and prints one division of the digits."""
        per_user, baselines = comparison.compare(base, seeds, steps, root, methods)
        written = report.write_report(per_user, root, prefix, baselines)
        compared = metrics.compare_paired(per_user, 1)
        per_user = pd.concat([baselines, per_user], ignore_index=True)
        written.append(write_rows(per_user, root / f"{prefix}per_user.csv"))
        print(
            f"\n{title}, {base.total_rounds} rounds of "
            f"{base.cohorts.clients_per_round} users, {len(seeds)} seeds. Accuracy on "
            "each user's held-out rows, before (0) and after adapting on its own:\n"
        )
        print(report.format_table(metrics.summarize(per_user), {0, 1, steps}))
        print(f"\nAfter one step, {report.COMPARED['accuracy']}")
        print(report.format_comparison(compared))
        return written

    files = show("Handwritten digits", "", Experiment(total_rounds=rounds))
    files += show(
        "Five digits of each user, under labels of its own",
        "own_labels.",
        Experiment(total_rounds=rounds, **_OWN_LABELS),
        _OWN_LABELS_METHODS,
    )
    print("\nWritten:", *files, sep="\n  ")

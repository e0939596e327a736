"""Simulates on-device adaptation of an exported model, user by user.

Every user has a LiteRT interpreter of its own. Prints the table of
scripts/evaluate.py, then the file's size, the latency of its signatures and the memory
a process needs to adapt it. Loads no TensorFlow.
"""

import pathlib

from absl import flags

from tff_perfedavg import quiet
from tff_perfedavg.experiments.settings import common_flags
from tff_perfedavg.optimization.config import AdaptationConfig


def define(flag_values):
    flags.DEFINE_string(
        "model",
        None,
        "A file of scripts/export_tflite.py.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "store",
        None,
        "A store of scripts/prepare_data.py or of a run.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_users",
        50,
        "Users played; 0 for all.",
        lower_bound=0,
        flag_values=flag_values,
    )
    common_flags.define_adaptation(flag_values, "the model's", rows="all that fit")
    flags.DEFINE_string(
        "output_dir",
        None,
        "Where tables and curves are written, if anywhere.",
        flag_values=flag_values,
    )
    flags.adopt_module_key_flags(common_flags, flag_values)


def main(flag_values):
    rate = flag_values.inner_learning_rate
    steps, batch = flag_values.adaptation_steps, flag_values.adaptation_batch_size
    AdaptationConfig(1.0 if rate is None else rate, steps, batch)
    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.experiments.deploy import on_device
    from tff_perfedavg.experiments.evaluation import metrics
    from tff_perfedavg.experiments.files.rows import write_rows
    from tff_perfedavg.experiments.report import tables as report
    from tff_perfedavg.ondevice.runner import OnDeviceModel

    path = pathlib.Path(flag_values.model)
    with quiet.without_notices():
        card = OnDeviceModel(path).card
    population = UserStore.open(flag_values.store)
    population.verify()
    rate = rate or card.get("inner_learning_rate", 0.01)
    config = AdaptationConfig(rate, steps, batch)
    groups = on_device.choose_users(population, flag_values.num_users)
    per_user = on_device.personalize(
        path, population, groups, config, seed=flag_values.base_random_seed
    )
    per_user.insert(0, "algorithm", card.get("algorithm", card["model"]))
    shown = {0, 1, steps}
    print(report.format_table(metrics.summarize(per_user), shown))

    print(f"\n{path}: {path.stat().st_size:,} bytes")
    taken = on_device.latencies(path, rate)
    print("Median latency: " + ", ".join(f"{n} {t:.3f} ms" for n, t in taken.items()))
    adapted, without = on_device.peak_memory(path)
    print(
        f"Peak memory: {adapted:.0f} MB, of which {without:.0f} MB are Python, NumPy "
        "and the runtime"
    )
    if flag_values.output_dir:
        directory = pathlib.Path(flag_values.output_dir)
        files = report.write_report(per_user, directory, prefix="on_device.")
        rows = directory / "on_device.per_user.csv"
        files.append(write_rows(per_user, rows))
        print("\nWritten:", *files, sep="\n  ")

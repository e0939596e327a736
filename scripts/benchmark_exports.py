"""Measures what each way of exporting does: size, start point, accuracy, latency.

Exports a trained model in each way, lets the same users adapt each file on devices of
their own, and prints a table. The last line is of files that only infer: every user's
adapted weights, quantized. Writes the table as CSV.
"""

import pathlib
import tempfile

from absl import flags

from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.files import atomic_write
from tff_perfedavg.optimization.config import AdaptationConfig


def define(flag_values):
    flags.DEFINE_string(
        "checkpoint",
        None,
        "model.npz of a run of scripts/train.py.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_users", 50, "Users played.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "adaptation_steps",
        5,
        "Gradient steps per user.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "batch_size", 20, "Rows of a batch.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_trainable",
        2,
        "Weight tensors of the head.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_fixed",
        5,
        "Users whose adapted weights are quantized.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output",
        "results/benchmark_exports.csv",
        "File of the table.",
        flag_values=flag_values,
    )


def ways(flag_values):
    """From each way's name to its options."""
    head = {"num_trainable": flag_values.num_trainable}
    return {
        "float32": {},
        "float16": {"storage": "float16"},
        "head": head,
        "head on 8-bit body": {**head, "quantize_frozen": True},
    }


def describe(name, path, per_user, latency, flag_values):
    """One row of the table."""
    accuracy = 100 * per_user.groupby("step")["accuracy"].mean()
    return {
        "file": name,
        "bytes": path.stat().st_size,
        "before": accuracy[0],
        "after 1": accuracy[1],
        f"after {flag_values.adaptation_steps}": accuracy[flag_values.adaptation_steps],
        "infer ms": latency["infer"],
        "adapt ms": latency["adapt"],
    }


def quantized_after_adapting(
    model, path, population, users, rate, directory, flag_values
):
    """Users' adapted weights as fixed files, means over users.

    Of bytes, accuracy adapted, accuracy quantized, largest difference of a probability.
    """
    import numpy as np

    from tff_perfedavg.experiments.deploy import on_device
    from tff_perfedavg.ondevice.export import export_inference
    from tff_perfedavg.ondevice.runner import OnDeviceModel

    rows = []
    for user in users:
        device = OnDeviceModel(path)
        adaptation = population.scaled(population.adaptation(user))
        evaluation = population.scaled(population.evaluation(user))
        for step in range(1, flag_values.adaptation_steps + 1):
            key = (0, int(user), step)
            on_device.take_step(device, adaptation, rate, flag_values.batch_size, key)
        fixed = directory / f"fixed-{user}.tflite"
        export_inference(model, device.weights, fixed, adaptation)
        quantized = OnDeviceModel(fixed)
        of_user = [on_device.measure(d, evaluation)[1] for d in (device, quantized)]
        largest = np.abs(device.infer(evaluation.x) - quantized.infer(evaluation.x))
        rows.append([fixed.stat().st_size, *of_user, largest.max()])
    return np.mean(rows, 0)


def main(flag_values):
    from tff_perfedavg.experiments.files import trained_model

    checkpoint = pathlib.Path(flag_values.checkpoint)
    weights, experiment = trained_model.load(checkpoint)
    command.load_frameworks()
    import pandas as pd

    import tff_perfedavg as pfa
    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.deploy import on_device
    from tff_perfedavg.experiments.evaluation import metrics

    population = build_population(experiment, RunPaths.of_model(checkpoint).root)
    model = build_model(experiment, population)
    groups = on_device.choose_users(population, flag_values.num_users)
    rate = experiment.local.inner_learning_rate
    config = AdaptationConfig(rate, flag_values.adaptation_steps)
    some_user = int(groups[metrics.SEEN][0])
    rows = population.scaled(population.adaptation(some_user))
    table = []
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        for name, options in ways(flag_values).items():
            path = directory / f"{name}.tflite"
            export_config = pfa.ondevice.ExportConfig(
                flag_values.batch_size, max_local_steps=0, **options
            )
            pfa.export_tflite(model, weights, path, export_config, examples=rows)
            per_user = on_device.personalize(path, population, groups, config)
            latency = on_device.latencies(path, rate)
            table.append(describe(name, path, per_user, latency, flag_values))
        users = groups[metrics.SEEN][: flag_values.num_fixed]
        size, adapted, quantized, largest = quantized_after_adapting(
            model,
            directory / "float32.tflite",
            population,
            users,
            rate,
            directory,
            flag_values,
        )
    frame = pd.DataFrame(table)
    print(frame.to_string(index=False, float_format="{:.3f}".format))
    print(
        f"Adapted weights of {len(users)} users as 8-bit files: {size:,.0f} bytes, "
        f"accuracy {100 * quantized:.2f} % against {100 * adapted:.2f} %, largest "
        f"difference of a probability {largest:.4f} (means over users)"
    )
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        frame.to_csv(file, index=False)
    print(f"Written: {flag_values.output}")


if __name__ == "__main__":
    command.run(main, define)

"""Writes a trained model as a TensorFlow Lite file that adapts on a device.

Measures the model on its own population for the card inside the file, and replays the
file in TensorFlow's interpreter and in LiteRT against TensorFlow before it appears.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors, quiet
from tff_perfedavg.algorithms.registry import methods
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.ondevice.config import STORAGES, ExportConfig

_DEFAULTS = ExportConfig()


def define(flag_values):
    flags.DEFINE_string(
        "checkpoint",
        None,
        "model.npz of a run of scripts/train.py.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output", None, "The .tflite file.", required=True, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "batch_size",
        _DEFAULTS.batch_size,
        "Rows a batch holds at most.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "infer_batch_size",
        _DEFAULTS.infer_batch_size,
        "Rows `infer` takes at once.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "variant",
        _DEFAULTS.variant,
        list(methods()),
        "What a local step of `meta_update` is.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "max_local_steps",
        _DEFAULTS.max_local_steps,
        "The most steps of `meta_update`; 0 leaves it out.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "storage",
        _DEFAULTS.storage,
        STORAGES,
        "How the initial weights are kept.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_trainable",
        None,
        "How many of the last weight tensors adapt; all by default.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "quantize_frozen",
        False,
        "Keep frozen weights as 8-bit integers.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "license", "not stated", "Of the model, for its card.", flag_values=flag_values
    )


def main(flag_values):
    config = ExportConfig(
        batch_size=flag_values.batch_size,
        infer_batch_size=flag_values.infer_batch_size,
        variant=flag_values.variant,
        max_local_steps=flag_values.max_local_steps,
        storage=flag_values.storage,
        num_trainable=flag_values.num_trainable,
        quantize_frozen=flag_values.quantize_frozen,
    )
    checkpoint = pathlib.Path(flag_values.checkpoint)
    output = pathlib.Path(flag_values.output)
    if output.suffix != ".tflite":
        raise errors.ConfigError(f"output is {output}; it must end in .tflite.")
    from tff_perfedavg.experiments.files import trained_model, trained_runs
    from tff_perfedavg.experiments.files.run_paths import RunPaths

    trained_model.load(checkpoint)
    command.warn(trained_runs.diverged_warnings(RunPaths.of_model(checkpoint)))
    command.load_frameworks()
    from tff_perfedavg.experiments.deploy.export_run import export_run
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    with quiet.without_notices():
        report = export_run(
            checkpoint, output, config, license_name=flag_values.license
        )
    print(f"Written: {report.path} ({report.num_bytes:,} bytes)")
    print(f"Operations, all built in: {', '.join(report.operations)}")
    for runtime, error in report.largest_error.items():
        print(f"Largest difference from TensorFlow in {runtime}'s runtime: {error:.1e}")


if __name__ == "__main__":
    command.run(main, define)

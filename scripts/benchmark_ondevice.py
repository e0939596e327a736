"""Measures exported files against Flex exports and against TensorFlow.

For an MLP and a CNN, and on demand (--model) for what phones use otherwise, the size of
the file, and the median time of infer, adapt and, of the first two, of meta_update, in
turn with

  flex      the same model exported as TensorFlow's guide to on-device training does,
            with select TensorFlow operations, in TensorFlow's interpreter
  function  the same mathematics as a tf.function

Ours runs in LiteRT. Prints a table and writes JSON.
"""

import json
import pathlib
import statistics
import tempfile
import time

from absl import flags

from tff_perfedavg.experiments.settings import command
from tff_perfedavg.files import atomic_write

_RATE = 0.01
_MODELS = ["mlp", "cnn", "mobilenet_v2", "transformer", "gru", "efficientnet_lite0"]


def define(flag_values):
    flags.DEFINE_multi_enum(
        "model",
        ["mlp", "cnn"],
        _MODELS,
        "Models measured: mobilenet_v2 has a width of 0.35 and takes images of 96x96, "
        "with its normalization frozen; transformer has two blocks of four heads on 32 "
        "vectors of 64; gru has 64 units and takes 16 vectors of 32; of "
        "efficientnet_lite0, which takes images of 32x32 as 128x128, a head adapts.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "repeats", 100, "Calls timed.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "batch_size", 20, "Rows of a batch.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_local_steps",
        10,
        "tau, steps of a meta_update.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output",
        "results/benchmark_ondevice.json",
        "File of the figures.",
        flag_values=flag_values,
    )


def build(name):
    """The model of a name."""
    import tensorflow as tf

    import tff_perfedavg as pfa

    layers = tf.keras.layers
    if name in ("mlp", "cnn"):
        return {"mlp": pfa.models.mlp, "cnn": pfa.models.cnn}[name]((28, 28), 10)
    if name == "efficientnet_lite0":
        from tff_perfedavg.models.pretrained import load_body, with_body

        head = pfa.models.logistic_regression((1280,), 10)
        return with_body(head, load_body(name, 128), (32, 32, 3))
    if name == "mobilenet_v2":
        body = tf.keras.applications.MobileNetV2(
            (96, 96, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
        )
        for layer in body.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
        inputs, x = body.input, body.output
    elif name == "transformer":
        x = inputs = tf.keras.Input((32, 64))
        for _ in range(2):
            attended = layers.MultiHeadAttention(4, 16)(x, x)
            x = layers.LayerNormalization()(layers.Add()([x, attended]))
            dense = layers.Dense(64)(layers.Dense(128, "gelu")(x))
            x = layers.LayerNormalization()(layers.Add()([x, dense]))
        x = layers.GlobalAveragePooling1D()(x)
    else:
        inputs = tf.keras.Input((16, 32))
        x = layers.GRU(64, unroll=True)(inputs)
    return pfa.from_keras(tf.keras.Model(inputs, layers.Dense(10)(x), name=name))


def export_ours(model, weights, directory, flag_values):
    """Our file with everything, and the one that only infers and adapts."""
    import tff_perfedavg as pfa

    kinds = {"whole": flag_values.num_local_steps, "without meta_update": 0}
    if model.name not in ("mlp", "cnn"):
        del kinds["whole"]
    files = {}
    for name, steps in kinds.items():
        config = pfa.ondevice.ExportConfig(
            flag_values.batch_size, max_local_steps=steps
        )
        path = directory / f"{model.name} {name}.tflite"
        pfa.export_tflite(model, weights, path, config)
        files[name] = path
    return files


def export_flex(model, weights, path, flag_values):
    """As TensorFlow's guide: train, infer, save and restore, gradients by tape."""
    import tensorflow as tf

    class Guide(tf.Module):
        def __init__(self):
            super().__init__()
            self.variables_of_model = [tf.Variable(w) for w in weights]

        def adapt(self, x, y):
            with tf.GradientTape() as tape:
                logits = model.apply(list(self.variables_of_model), x)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, self.variables_of_model)
            for variable, gradient in zip(
                self.variables_of_model, gradients, strict=True
            ):
                variable.assign_sub(_RATE * gradient)
            return {"loss": loss}

        def infer(self, x):
            logits = model.apply(list(self.variables_of_model), x)
            return {"probabilities": tf.nn.softmax(logits)}

        def save(self, checkpoint_path):
            tf.raw_ops.Save(
                filename=checkpoint_path,
                tensor_names=[f"{i}" for i in range(len(weights))],
                data=[v.read_value() for v in self.variables_of_model],
            )
            return {"checkpoint_path": checkpoint_path}

        def restore(self, checkpoint_path):
            for i, variable in enumerate(self.variables_of_model):
                restored = tf.raw_ops.Restore(
                    file_pattern=checkpoint_path, tensor_name=f"{i}", dt=tf.float32
                )
                variable.assign(tf.ensure_shape(restored, variable.shape))
            return {"checkpoint_path": checkpoint_path}

    module = Guide()
    shape = model.input_spec.shape[1:]
    x = tf.TensorSpec([flag_values.batch_size, *shape], tf.float32, name="x")
    y = tf.TensorSpec([flag_values.batch_size], tf.int32, name="y")
    one = tf.TensorSpec([1, *shape], tf.float32, name="x")
    file_name = tf.TensorSpec([], tf.string, name="checkpoint_path")
    signatures = {
        "infer": tf.function(module.infer).get_concrete_function(one),
        "adapt": tf.function(module.adapt).get_concrete_function(x, y),
        "save": tf.function(module.save).get_concrete_function(file_name),
        "restore": tf.function(module.restore).get_concrete_function(file_name),
    }
    with tempfile.TemporaryDirectory() as directory:
        tf.saved_model.save(module, directory, signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(directory)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS,
            tf.lite.OpsSet.SELECT_TF_OPS,
        ]
        converter.experimental_enable_resource_variables = True
        path.write_bytes(converter.convert())
    return path


def contenders(model, weights, own_file, flex, flag_values):
    """For each signature, from a contender's name to a function that calls it."""
    import numpy as np
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    import tff_perfedavg as pfa
    from tff_perfedavg.models.model import Batch
    from tff_perfedavg.optimization.local_update import local_update

    rng = np.random.default_rng(0)
    batch, steps = flag_values.batch_size, flag_values.num_local_steps
    shape = model.input_spec.shape[1:]
    x = rng.random((steps, batch, *shape), np.float32)
    y = rng.integers(0, 10, (steps, batch), np.int32)
    rate = np.array([_RATE], np.float32)

    # Interpreters outlive their signatures' runners, which do not keep them.
    ours = Interpreter(model_path=str(own_file))
    theirs = tf.lite.Interpreter(model_path=str(flex))
    runner = {n: ours.get_signature_runner(n) for n in ours.get_signature_list()}
    guide = {n: theirs.get_signature_runner(n) for n in ("infer", "adapt")}
    contenders.kept = [ours, theirs]

    variables = [tf.Variable(w) for w in weights]
    mask = tf.ones([batch])

    @tf.function
    def infer(x):
        return tf.nn.softmax(model.apply(list(variables), x))

    adaptation = pfa.optimization.Adaptation(_RATE)

    @tf.function
    def adapt(x, y):
        read = [v.read_value() for v in variables]
        loss, adapted = adaptation.step(model.batch_loss, read, Batch(x, y, mask))
        for variable, value in zip(variables, adapted, strict=True):
            variable.assign(value)
        return loss

    config = pfa.PerFedAvgConfig(_RATE, _RATE, steps, batch, batch, batch)
    algorithm = config.build()

    @tf.function
    def meta_update(weights, x, y):
        trained = local_update(
            model.batch_loss,
            weights,
            lambda step: [Batch(x[step], y[step], mask)] * len(config.roles),
            algorithm,
        )
        return [w - t for w, t in zip(weights, trained.state, strict=True)]

    inputs = {f"weight_{i}": w for i, w in enumerate(weights)}
    for role in config.roles:
        inputs |= {f"x_{role}": x, f"y_{role}": y}
    inputs["num_steps"] = np.array([steps], np.int32)
    rates = {"inner_learning_rate": rate, "outer_learning_rate": rate}
    in_memory = [tf.constant(t) for t in (x[0], y[0], x, y)]
    start = [tf.constant(w) for w in weights]
    calls = {
        "infer": {
            "ours": lambda: runner["infer"](x=x[0, :1]),
            "flex": lambda: guide["infer"](x=x[0, :1]),
            "function": lambda: infer(in_memory[0][:1]).numpy(),
        },
        "adapt": {
            "ours": lambda: runner["adapt"](x=x[0], y=y[0], learning_rate=rate),
            "flex": lambda: guide["adapt"](x=x[0], y=y[0]),
            "function": lambda: adapt(*in_memory[:2]).numpy(),
        },
        "meta_update": {
            "ours": lambda: runner["meta_update"](**inputs, **rates),
            "function": lambda: meta_update(start, *in_memory[2:])[0].numpy(),
        },
    }
    return {name: of_name for name, of_name in calls.items() if name in runner}


def median_milliseconds(calls, flag_values):
    """Each contender's median, in turn."""
    for call in calls.values():
        for _ in range(5):
            call()
    taken = {name: [] for name in calls}
    for _ in range(flag_values.repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def main(flag_values):
    command.load_frameworks()
    results = {
        "batch_size": flag_values.batch_size,
        "num_local_steps": flag_values.num_local_steps,
    }
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        for name in flag_values.model:
            model = build(name)
            weights = model.init(0)
            files = export_ours(model, weights, directory, flag_values)
            flex = export_flex(
                model, weights, directory / f"{name} flex.tflite", flag_values
            )
            sizes = {n: path.stat().st_size for n, path in files.items()}
            sizes |= {"flex": flex.stat().st_size}
            sizes["weights"] = sum(w.nbytes for w in weights)
            print(f"{name}, bytes: ", end="")
            print(", ".join(f"{n} {size:,}" for n, size in sizes.items()))
            results[name] = {"bytes": sizes, "milliseconds": {}}
            for signature, calls in contenders(
                model, weights, next(iter(files.values())), flex, flag_values
            ).items():
                median = median_milliseconds(calls, flag_values)
                results[name]["milliseconds"][signature] = median
                cells = [
                    f"{n} {value:.3f} ({value / median['ours']:.2f}x)"
                    for n, value in median.items()
                ]
                print(f"{name} {signature}, ms: {', '.join(cells)}", flush=True)
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(json.dumps(results, indent=1).encode())
    print(f"Written: {flag_values.output}")


if __name__ == "__main__":
    command.run(main, define)

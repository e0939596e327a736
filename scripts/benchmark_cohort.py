"""Measures a round's time per user against stock TFF, plain TensorFlow and peers.

Contenders on the same work, a cohort of users with tau local steps on batches drawn
from random rows, run in turn:

  stock     tff.learning.algorithms.build_unweighted_fed_avg on tf.data.Datasets, in
            TFF's own runtime
  stock_sequence  ours, fed with tff.SequenceType batches, in TFF's own runtime
  sequence  the same in ours
  users     ours, one user of a store per TFF client
  loop      ours, blocks of users, one after the other
  vectorized  ours, blocks of users, side by side
  plain     the same TensorFlow graph in a tf.function, outside TFF

With --family, every algorithm of the registry beside FedAvg instead, in blocks of users
one after the other, or side by side for a tiny model, in turn in one run.

And, with --peers, a PyTorch loop and JAX's vmap and lax.map over users, each in an
environment of its own that is made under --peers_dir. Prints a table, the ratios of
medians, and the share of the machine's float32 matrix-product rate that is reached;
writes all as JSON.
"""

import contextlib
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from tff_perfedavg.experiments.settings import command
from tff_perfedavg.files import atomic_write

ALGORITHMS = ("fed_avg", "first_order", "hessian_free", "exact")
WORKS = ("mlp", "tiny", "cnn", "har")
PEERS = ("torch", "jax_vmap", "jax_map")
# Whether a peer's round draws its batches, as ours does, or finds them ready.
PEER_DRAWS = ("drawn", "given")
PEER_PACKAGES = {"torch": ["torch==2.13.0", "numpy"], "jax": ["jax", "numpy"]}
# Gradients a local step needs; a Hessian-vector product needs the work of two.
GRADIENTS = {"fed_avg": 1, "first_order": 2, "hessian_free": 4, "exact": 4}


def define(flag_values):
    flags.DEFINE_multi_enum(
        "work", ["mlp", "tiny"], WORKS, "Model and data.", flag_values=flag_values
    )
    flags.DEFINE_multi_enum(
        "algorithm",
        list(ALGORITHMS),
        ALGORITHMS,
        "Algorithms.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "cohort", 100, "Users per round.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_local_steps", 10, "tau.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "batch_size", 20, "Rows of a batch.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "repeats", 7, "Rounds timed.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_bool(
        "family",
        False,
        "Measure every algorithm against FedAvg, and nothing else.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "peers", False, "Measure the peers, too.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "peers_dir",
        "results/peers",
        "Where the peers' environments are.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output",
        "results/benchmark_cohort.json",
        "File of the figures.",
        flag_values=flag_values,
    )


def make_work(name, directory, flag_values):
    """A store of random rows and the model of a work."""
    import numpy as np

    import tff_perfedavg as pfa

    shape, classes, build = {
        "mlp": ((28, 28), 10, pfa.models.mlp),
        "tiny": ((64,), 10, pfa.models.logistic_regression),
        "cnn": ((28, 28), 10, pfa.models.cnn),
        "har": ((128, 9), 6, pfa.models.conv1d),
    }[name]
    # As many rows as stock FedAvg walks in tau batches.
    size = flag_values.num_local_steps * flag_values.batch_size

    def users():
        for number in range(flag_values.cohort):
            rng = np.random.default_rng(number)
            x = rng.integers(0, 256, (size, *shape), np.uint8)
            y = rng.integers(0, classes, size, np.int32)
            yield pfa.data.User(pfa.data.Rows(x, y), pfa.data.Rows(x[:0], y[:0]))

    description = pfa.data.Description(name, classes, scale=1 / 255)
    store = pfa.UserStore.write(directory / name, users(), description)
    return store, build(shape, classes)


@contextlib.contextmanager
def stock_runtime():
    """TFF's runtime as it comes, and the end of its worker.

    TFF leaves it behind at some exits, and waits for it for ever at others: it ends it
    by SIGINT, which a command in the background, and so its worker, ignores.
    """
    import psutil
    import tensorflow_federated as tff

    this = psutil.Process()
    others = this.children()
    context = tff.backends.native.create_sync_local_cpp_execution_context()
    with tff.framework.get_context_stack().install(context):
        tff.tensorflow.computation(lambda: 0)()
    (worker,) = set(this.children()) - set(others)
    try:
        yield context
    finally:
        # Not when it has ended: the number may be another process's by then.
        if worker.is_running():
            worker.kill()


def contenders(store, model, algorithm, stock_runtime, flag_values):
    """From each contender's name to a function that runs one round."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_federated as tff

    import tff_perfedavg as pfa
    from tff_perfedavg.optimization import batches
    from tff_perfedavg.optimization.local_update import local_update

    steps, batch = flag_values.num_local_steps, flag_values.batch_size
    if algorithm == "fed_avg":
        build, config = pfa.build_fed_avg, pfa.FedAvgConfig(0.01, steps, batch)
    else:
        build = pfa.build_per_fed_avg
        config = pfa.PerFedAvgConfig(
            0.01, 0.01, steps, batch, batch, batch, variant=algorithm
        )
    users = np.arange(flag_values.cohort, dtype=np.int32)
    rows = [store.adaptation(user) for user in users]
    pixels = [(r.x / np.float32(255), np.asarray(r.y)) for r in rows]

    def rounds(process, clients, runtime=None):
        state = process.initialize()
        stack = tff.framework.get_context_stack()

        def run():
            nonlocal state
            with stack.install(runtime or stack.current):
                state = process.next(state, clients).state

        return run

    forms = {
        "users": pfa.federated.StoreClientData(store, model),
        "loop": pfa.federated.choose_client_data(
            store, model, flag_values.cohort, "blocks_loop"
        ),
        "vectorized": pfa.federated.choose_client_data(
            store, model, flag_values.cohort, "blocks_vectorized"
        ),
    }
    found = {}
    if algorithm == "fed_avg":
        stock = tff.learning.algorithms.build_unweighted_fed_avg(
            pfa.federated.to_tff(model), tff.learning.optimizers.build_sgdm(0.01)
        )
        datasets = [
            tf.data.Dataset.from_tensor_slices(p).shuffle(len(p[1])).batch(batch)
            for p in pixels
        ]
        found["stock"] = rounds(stock, datasets, stock_runtime)
    sequences = [pfa.client_dataset(u, *p) for u, p in enumerate(pixels)]
    for name, runtime in (("stock_sequence", stock_runtime), ("sequence", None)):
        found[name] = rounds(build(model, config), sequences, runtime)
    for name, form in forms.items():
        if name == "vectorized" and model.name == "cnn":
            continue  # Convolutions with filters of their own do not vectorize.
        process = build(model, config, client_data=form)
        found[name] = rounds(process, form.clients(users))

    algorithm = config.build()
    initial = [tf.constant(w) for w in model.init(0)]
    in_memory = tf.constant(np.stack([p[0] for p in pixels]))
    labels = tf.constant(np.stack([p[1] for p in pixels]))

    @tf.function
    def plain():
        def train(user, total):
            own = batches.UserRows.of(in_memory[user], labels[user])
            key = batches.user_key(tf.constant([0, 0]), tf.constant(0), user)
            source = batches.batch_source(own, key, steps, config.batch_sizes)
            trained = local_update(model.batch_loss, initial, source, algorithm)
            sums = [t + w for t, w in zip(total, trained.state, strict=True)]
            return user + 1, sums

        zeros = [tf.zeros_like(w) for w in initial]
        return tf.while_loop(
            lambda user, _: user < flag_values.cohort, train, (tf.constant(0), zeros)
        )[1]

    found["plain"] = lambda: plain()[0].numpy()
    return found


def family(store, model, form, flag_values):
    """From every method's name to a function that runs one of its rounds."""
    import numpy as np

    import tff_perfedavg as pfa
    from tff_perfedavg.algorithms.registry import ALGORITHMS, LocalSettings, methods
    from tff_perfedavg.settings import settings_of

    chosen = dict(methods())
    # What else of them costs otherwise.
    for method in ("exact", "first_order"):
        chosen[f"{method}, 5 inner steps"] = {**chosen[method], "inner_steps": 5}
    for method in ("exact", "hessian_free"):
        rows = {**chosen[method], "hessian_batch": "own"}
        chosen[f"{method}, D'' of its own"] = rows
    per_weight = {**chosen["meta_sgd"], "learned_rates": "per_weight"}
    chosen["meta_sgd, per weight"] = per_weight
    data = pfa.federated.choose_client_data(store, model, flag_values.cohort, form)
    clients = data.clients(np.arange(flag_values.cohort, dtype=np.int32))
    found = {}
    for name, settings in chosen.items():
        known = ("algorithm", "variant")
        own = {key: value for key, value in settings.items() if key not in known}
        if "head_tensors" in settings_of(ALGORITHMS[settings["algorithm"]]):
            # A kernel and a bias have no body before them.
            own["head_tensors"] = min(2, len(model.init(0)) - 1)
        local = LocalSettings(
            **{key: value for key, value in settings.items() if key in known},
            num_local_steps=flag_values.num_local_steps,
            batch_size=flag_values.batch_size,
            options=own,
        )
        process = pfa.build_process(model, local.config, client_data=data)
        found[name] = _rounds(process, clients)
    return found


def _rounds(process, clients):
    state = process.initialize()

    def run():
        nonlocal state
        state = process.next(state, clients).state

    return run


def measure_family(work, store, model, flag_values):
    """Measures every method, prints a line of each, and returns them."""
    form = "blocks_vectorized" if work == "tiny" else "blocks_loop"
    taken = measure(family(store, model, form, flag_values), flag_values)
    median = {name: statistics.median(times) for name, times in taken.items()}
    print(f"\n{work}, {form}: ms per user, and times FedAvg's")
    for name, value in median.items():
        # Of every round's own ratio: what slows the machine slows both.
        ratio = statistics.median(
            a / b for a, b in zip(taken[name], taken["fed_avg"], strict=True)
        )
        print(f"  {name:28} {value:8.3f} {ratio:8.2f}", flush=True)
    return {
        "work": work,
        "form": form,
        "milliseconds_per_user": taken,
        "median": median,
    }


def measure(found, flag_values):
    """Milliseconds per user of every repeat, the contenders in turn."""
    for run in found.values():
        run()
    taken = {name: [] for name in found}
    for _ in range(flag_values.repeats):
        for name, run in found.items():
            start = time.perf_counter()
            run()
            taken[name].append(1e3 * (time.perf_counter() - start) / flag_values.cohort)
    return taken


def matrix_product_rate():
    """The machine's float32 matrix-product rate, in 1e9 operations per second."""
    import tensorflow as tf

    size = 2048
    a = tf.random.stateless_normal([size, size], [0, 0])
    product = tf.function(lambda: tf.matmul(a, a))
    product()
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        product().numpy()
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def operations_per_user(model, algorithm, flag_values):
    """Floating-point operations a user's round needs: three passes per gradient."""
    import tensorflow as tf

    shapes = [w.shape for w in model.init(0)]

    @tf.function
    def forward(x, *weights):
        return model.apply(weights, x)

    x_spec = tf.TensorSpec([flag_values.batch_size, *model.input_spec.shape[1:]])
    graph = forward.get_concrete_function(x_spec, *map(tf.TensorSpec, shapes)).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    profile = tf.compat.v1.profiler.profile(graph, options=options)
    return (
        3 * profile.total_float_ops * GRADIENTS[algorithm] * flag_values.num_local_steps
    )


def peer_python(package, flag_values):
    """The interpreter of a peer's environment, made at first use."""
    directory = pathlib.Path(flag_values.peers_dir) / package
    python = directory / "bin" / "python"
    if not (directory / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES[package]],
            check=True,
        )
        (directory / ".installed").touch()
    return python


def measure_peer(peer, draws, algorithm, model, flag_values):
    """Milliseconds per user of every repeat of a peer; see benchmark_peer.py."""
    sizes = [str(w.shape[1]) for w in model.init(0)[::2]]
    inputs = model.init(0)[0].shape[0]
    arguments = [
        flag_values.cohort,
        flag_values.num_local_steps,
        flag_values.batch_size,
        flag_values.repeats,
        inputs,
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    answer = subprocess.run(
        [
            peer_python(peer.split("_")[0], flag_values),
            pathlib.Path(__file__).parent / "benchmark_peer.py",
            peer,
            draws,
            algorithm,
            *map(str, arguments),
            ",".join(sizes),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(answer.stdout)


def main(flag_values):
    command.load_frameworks()
    from tff_perfedavg.runtime.local_runtime import use_local_runtime

    use_local_runtime()
    rate = matrix_product_rate()
    print(f"matrix products: {rate:.0f} GFLOP/s; times in ms per user, medians")
    results = {"gflops": rate, "cohort": flag_values.cohort, "rows": []}
    with stock_runtime() as stock, tempfile.TemporaryDirectory() as directory:
        for work in flag_values.work:
            store, model = make_work(work, pathlib.Path(directory), flag_values)
            if flag_values.family:
                row = measure_family(work, store, model, flag_values)
                results["rows"].append(row)
                continue
            for algorithm in flag_values.algorithm:
                taken = measure(
                    contenders(store, model, algorithm, stock, flag_values), flag_values
                )
                if flag_values.peers and work in ("mlp", "tiny"):
                    for peer, draws in itertools.product(PEERS, PEER_DRAWS):
                        name = f"{peer}_{draws}"
                        taken[name] = measure_peer(
                            peer, draws, algorithm, model, flag_values
                        )
                median = {name: statistics.median(t) for name, t in taken.items()}
                ours = ("users", "loop", "vectorized")
                best = min((n for n in ours if n in median), key=median.get)
                operations = operations_per_user(model, algorithm, flag_values)
                share = operations / (median[best] * 1e-3) / (rate * 1e9)
                row = {
                    "work": work,
                    "algorithm": algorithm,
                    "milliseconds_per_user": taken,
                    "median": median,
                    "best": best,
                    "times_best": {n: m / median[best] for n, m in median.items()},
                    "share_of_matrix_rate": share,
                }
                results["rows"].append(row)
                cells = [
                    f"{name} {value:.2f} ({value / median[best]:.2f}x)"
                    for name, value in median.items()
                ]
                print(f"{work} {algorithm}: " + ", ".join(cells), end="")
                print(f"; {best} reaches {100 * share:.0f} % of the rate", flush=True)
    with atomic_write(pathlib.Path(flag_values.output)) as file:
        file.write(json.dumps(results, indent=1).encode())
    print(f"Written: {flag_values.output}")


if __name__ == "__main__":
    command.run(main, define)

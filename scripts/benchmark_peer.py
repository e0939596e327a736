"""One peer's time for the work of scripts/benchmark_cohort.py, in the peer's own way.

Run by scripts/benchmark_cohort.py --peers in an environment that has the peer and
nothing of ours:

  benchmark_peer.py PEER ALGORITHM USERS STEPS BATCH REPEATS INPUTS UNITS

prints the milliseconds per user of every repeat as JSON. PEER is one of torch,
jax_vmap, jax_map. INPUTS is the number of
features, UNITS the units of the dense layers, hidden ones with ELU, comma-separated.
`torch` loops over users and steps as PFLlib's Per-FedAvg client does; `jax_vmap` and
`jax_map` jit a round over all users, as FedJAX does, side by side or in turn.
"""

import itertools
import json
import sys
import time

import numpy as np

INNER, OUTER, DELTA = 0.01, 0.01, 0.01
NUM_BATCHES = {"fed_avg": 1, "first_order": 2, "hessian_free": 3, "exact": 3}


def make_data(users, steps, batch, inputs, roles, classes):
    """Every step's batches of every user, drawn beforehand: no peer pays for that."""
    rng = np.random.default_rng(0)
    x = rng.random((users, steps, roles, batch, inputs), np.float32)
    y = rng.integers(0, classes, (users, steps, roles, batch))
    return x, y


def make_weights(sizes):
    """Kernels and biases of the dense layers, in turn."""
    rng = np.random.default_rng(1)
    weights = []
    for i, o in itertools.pairwise(sizes):
        weights.append((0.05 * rng.standard_normal((i, o))).astype(np.float32))
        weights.append(np.zeros(o, np.float32))
    return weights


def torch_round(algorithm, x, y, initial):
    """A round as a function without arguments."""
    import torch

    x, y = torch.tensor(x), torch.tensor(y)
    initial = [torch.tensor(w) for w in initial]

    def loss(weights, features, labels):
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            features = torch.nn.functional.elu(features @ kernel + bias)
        logits = features @ weights[-2] + weights[-1]
        return torch.nn.functional.cross_entropy(logits, labels)

    def gradient(weights, batch, create_graph=False):
        weights = [w.detach().requires_grad_() for w in weights]
        value = loss(weights, *batch)
        grads = torch.autograd.grad(value, weights, create_graph=create_graph)
        return weights, grads

    def step(weights, batches):
        _, g = gradient(weights, batches[0])
        if algorithm == "fed_avg":
            return [w - OUTER * d for w, d in zip(weights, g, strict=True)]
        adapted = [w - INNER * d for w, d in zip(weights, g, strict=True)]
        _, v = gradient(adapted, batches[1])
        if algorithm == "exact":
            points, g = gradient(weights, batches[2], create_graph=True)
            product = torch.autograd.grad(g, points, grad_outputs=v)
        elif algorithm == "hessian_free":
            e = DELTA / torch.sqrt(sum((t * t).sum() for t in v))
            ahead = [w + e * d for w, d in zip(weights, v, strict=True)]
            behind = [w - e * d for w, d in zip(weights, v, strict=True)]
            _, up = gradient(ahead, batches[2])
            _, down = gradient(behind, batches[2])
            product = [(a - b) / (2 * e) for a, b in zip(up, down, strict=True)]
        if algorithm != "first_order":
            v = [a - INNER * h for a, h in zip(v, product, strict=True)]
        return [w - OUTER * d for w, d in zip(weights, v, strict=True)]

    def run():
        total = [torch.zeros_like(w) for w in initial]
        for user in range(len(x)):
            weights = initial
            for number in range(x.shape[1]):
                batches = list(zip(x[user, number], y[user, number], strict=True))
                weights = step(weights, batches)
            total = [t + w.detach() for t, w in zip(total, weights, strict=True)]
        return [t / len(x) for t in total]

    return run


def jax_round(layout, algorithm, x, y, initial):
    """A round as a function without arguments."""
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(x), jnp.asarray(y)
    initial = [jnp.asarray(w) for w in initial]

    def loss(weights, batch):
        features, labels = batch
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            features = jax.nn.elu(features @ kernel + bias)
        log_p = jax.nn.log_softmax(features @ weights[-2] + weights[-1])
        return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()

    gradient = jax.grad(loss)

    def moved(weights, direction, rate):
        return [w + rate * d for w, d in zip(weights, direction, strict=True)]

    def step(weights, batches):
        x, y = batches
        g = gradient(weights, (x[0], y[0]))
        if algorithm == "fed_avg":
            return moved(weights, g, -OUTER), None
        v = gradient(moved(weights, g, -INNER), (x[1], y[1]))
        if algorithm == "exact":
            at = lambda w: gradient(w, (x[2], y[2]))  # noqa: E731
            _, product = jax.jvp(at, (weights,), (v,))
        elif algorithm == "hessian_free":
            e = DELTA / jnp.sqrt(sum((t * t).sum() for t in v))
            up = gradient(moved(weights, v, e), (x[2], y[2]))
            down = gradient(moved(weights, v, -e), (x[2], y[2]))
            product = [(a - b) / (2 * e) for a, b in zip(up, down, strict=True)]
        if algorithm != "first_order":
            v = moved(v, product, -INNER)
        return moved(weights, v, -OUTER), None

    def user(data):
        return jax.lax.scan(step, initial, data)[0]

    @jax.jit
    def run(x, y):
        if layout == "jax_vmap":
            each = jax.vmap(user)((x, y))
        else:
            each = jax.lax.map(user, (x, y))
        return [w.mean(0) for w in each]

    return lambda: jax.block_until_ready(run(x, y))


def main():
    peer, algorithm, *numbers, units = sys.argv[1:]
    users, steps, batch, repeats, inputs = map(int, numbers)
    sizes = [inputs, *map(int, units.split(","))]
    roles = NUM_BATCHES[algorithm]
    x, y = make_data(users, steps, batch, inputs, roles, sizes[-1])
    weights = make_weights(sizes)
    if peer == "torch":
        run = torch_round(algorithm, x, y, weights)
    else:
        run = jax_round(peer, algorithm, x, y, weights)
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - start) / users)
    print(json.dumps(taken))


if __name__ == "__main__":
    main()

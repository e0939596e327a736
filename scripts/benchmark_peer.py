"""One peer's time for the work of scripts/benchmark_cohort.py, in the peer's own way.

Run by scripts/benchmark_cohort.py --peers in an environment that has the peer and
nothing of ours:

  benchmark_peer.py PEER DRAWS ALGORITHM USERS STEPS BATCH REPEATS INPUTS UNITS

prints the milliseconds per user of every repeat as JSON. PEER is one of torch,
jax_vmap, jax_map. DRAWS is `drawn` if a round draws each step's batches from a user's
rows, uint8, and scales them, which is the same work as ours; or `given` if they lie
ready as float32, which leaves the steps alone. INPUTS is the number of
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


def make_rows(users, steps, batch, inputs, classes):
    """Every user's rows: uint8 `[users, rows, inputs]` and labels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (users, steps * batch, inputs), np.uint8)
    return x, rng.integers(0, classes, (users, steps * batch))


def make_batches(users, steps, batch, inputs, roles, classes):
    """Every step's batches of every user, drawn and scaled beforehand."""
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


def torch_round(draws, algorithm, steps, batch, x, y, initial):
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

    def batches_of(user, number):
        if draws == "given":
            return list(zip(x[user, number], y[user, number], strict=True))
        rows = torch.randperm(x.shape[1])[: NUM_BATCHES[algorithm] * batch]
        features = x[user, rows].to(torch.float32) * (1 / 255)
        return list(zip(features.split(batch), y[user, rows].split(batch), strict=True))

    def run():
        total = [torch.zeros_like(w) for w in initial]
        for user in range(len(x)):
            weights = initial
            for number in range(steps):
                weights = step(weights, batches_of(user, number))
            total = [t + w.detach() for t, w in zip(total, weights, strict=True)]
        return [t / len(x) for t in total]

    return run


def jax_round(layout, draws, algorithm, steps, batch, x, y, initial):
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

    def user(own):
        x, y, key = own
        if draws == "given":
            return jax.lax.scan(step, initial, (x, y))[0]

        def draw_and_step(weights, number):
            # The first of the rows in the order of random bits.
            bits = jax.random.bits(jax.random.fold_in(key, number), (x.shape[0],))
            roles = NUM_BATCHES[algorithm]
            rows = jax.lax.top_k(bits, roles * batch)[1].reshape(roles, batch)
            features = x[rows].astype(jnp.float32) * (1 / 255)
            return step(weights, (features, y[rows]))

        return jax.lax.scan(draw_and_step, initial, jnp.arange(steps))[0]

    @jax.jit
    def run(x, y, seed):
        keys = jax.random.split(jax.random.key(seed), x.shape[0])
        if layout == "jax_vmap":
            each = jax.vmap(user)((x, y, keys))
        else:
            each = jax.lax.map(user, (x, y, keys))
        return [w.mean(0) for w in each]

    return lambda: jax.block_until_ready(run(x, y, 0))


def main():
    peer, draws, algorithm, *numbers, units = sys.argv[1:]
    users, steps, batch, repeats, inputs = map(int, numbers)
    sizes = [inputs, *map(int, units.split(","))]
    if draws == "drawn":
        x, y = make_rows(users, steps, batch, inputs, sizes[-1])
    else:
        roles = NUM_BATCHES[algorithm]
        x, y = make_batches(users, steps, batch, inputs, roles, sizes[-1])
    work = (draws, algorithm, steps, batch, x, y, make_weights(sizes))
    run = torch_round(*work) if peer == "torch" else jax_round(peer, *work)
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - start) / users)
    print(json.dumps(taken))


if __name__ == "__main__":
    main()

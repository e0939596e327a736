"""Simulated on-device personalization: each user on a LiteRT interpreter of its own.

Loads no TensorFlow.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Rows, UserStore
from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN
from tff_perfedavg.ondevice.runner import OnDeviceModel
from tff_perfedavg.optimization.config import AdaptationConfig


def choose_users(population: UserStore, num_users: int) -> dict[str, np.ndarray]:
    """Returns the first users of each group, in proportion to its size.

    A group with users keeps one at least.

    Args:
      population: the users.
      num_users: of all groups together; 0 for all.

    Returns:
      From a group, `seen` or `new`, to the numbers of its users, int `[users]`.
    """
    groups = {SEEN: population.training_users, NEW: population.new_users}
    total = sum(len(users) for users in groups.values())
    if not num_users or num_users >= total:
        return groups
    return {
        name: users[: max(1, round(num_users * len(users) / total))]
        for name, users in groups.items()
    }


def personalize(
    path: pathlib.Path,
    population: UserStore,
    groups: dict[str, np.ndarray],
    config: AdaptationConfig,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Adapts and evaluates an exported model on every user's simulated device.

    Each user has an interpreter of its own, adapts on its adaptation rows and is
    judged on its evaluation rows, before and after each step.

    Args:
      path: the exported file.
      population: the users.
      groups: from a group's name to its users.
      config: the adaptation, m steps. Without a batch size a step takes all of a
        user's rows or, where the file's batch is smaller, as many as fit, drawn
        afresh for each step.
      seed: of these draws.

    Returns:
      The columns of `evaluate_users`.

    Raises:
      ModelError: if the file cannot be read or takes rows of another shape or other
        classes than the store has.
      ConfigError: if the batch size is larger than the file's.
    """
    first = OnDeviceModel(path)
    check_fits(first, population)
    size = config.batch_size or first.batch_size
    if size > first.batch_size:
        raise errors.ConfigError(
            f"adaptation_batch_size is {size}; {path} takes {first.batch_size} rows. "
            "Export it with a larger batch_size."
        )
    rows = [
        {"users": name, "user": int(user), **row}
        for name, users in groups.items()
        for user in users
        for row in _by_step(
            OnDeviceModel(path),
            population.scaled(population.adaptation(user)),
            population.scaled(population.evaluation(user)),
            config,
            size,
            key=(seed, int(user)),
        )
    ]
    return pd.DataFrame(rows)


def _by_step(
    device: OnDeviceModel,
    adaptation: Rows,
    evaluation: Rows,
    config: AdaptationConfig,
    size: int,
    *,
    key: tuple[int, ...],
) -> Iterator[dict[str, float]]:
    """Adapts a user's device, and measures it before and after each step."""
    for step in range(config.num_steps + 1):
        if step:
            rate = config.inner_learning_rate
            take_step(device, adaptation, rate, size, (*key, step))
        loss, accuracy = measure(device, evaluation)
        yield {
            "step": step,
            "loss": loss,
            "accuracy": accuracy,
            "num_adaptation_examples": len(adaptation.y),
            "num_evaluation_examples": len(evaluation.y),
        }


def take_step(
    device: OnDeviceModel,
    rows: Rows,
    learning_rate: float,
    size: int,
    key: Sequence[int],
) -> None:
    """Takes one gradient step on a user's scaled rows; none if there are none.

    Args:
      device: the user's.
      rows: the user's.
      learning_rate: alpha.
      size: rows of the step. A user with more draws as many.
      key: what the draw is keyed by.
    """
    count = len(rows.y)
    if not count:
        return
    chosen = np.arange(count)
    if count > size:
        chosen = np.random.default_rng(key).permutation(count)[:size]
    device.adapt(rows.x[chosen], rows.y[chosen], learning_rate)


def check_fits(model: OnDeviceModel, population: UserStore) -> None:
    """Raises `ModelError` unless the model takes the store's rows.

    Args:
      model: the exported model.
      population: the users' store.
    """
    card, classes = model.card, population.description.num_classes
    for kind, wanted, found in (
        ("features", card["input_shape"], list(population.input_shape)),
        ("labels", card["label_shape"], list(population.label_shape)),
        ("classes", card["num_classes"], classes),
    ):
        if wanted != found:
            remedy = (
                " Prepare a store of the same users without --features: the file has "
                "the network that makes them."
                if kind == "features" and population.description.body
                else ""
            )
            raise errors.ModelError(
                f"{population.path} has {kind} {found}, the exported model takes "
                f"{wanted}.{remedy}"
            )


def measure(device: OnDeviceModel, rows: Rows) -> tuple[float, float]:
    """Returns mean loss and accuracy, NaN without rows; accuracy needs classes.

    Args:
      device: the model, with the user's weights.
      rows: the user's, scaled.
    """
    if not len(rows.y):
        return float("nan"), float("nan")
    outputs = device.infer(rows.x)
    if device.card["num_classes"] is None:
        return float(np.mean(np.square(outputs - rows.y))), float("nan")
    chosen = outputs[np.arange(len(rows.y)), rows.y]
    # A probability may be 0 in float32, where the loss is not infinite.
    loss = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
    return float(loss.mean()), float(np.mean(outputs.argmax(1) == rows.y))


def latencies(
    path: pathlib.Path, learning_rate: float, repeats: int = 20
) -> dict[str, float]:
    """Returns the median time of a call of each signature, in milliseconds.

    Args:
      path: the exported file.
      learning_rate: alpha, and beta of `meta_update`, which takes all its steps.
      repeats: calls timed, after one that is not.
    """
    device = OnDeviceModel(path)
    numbers = {
        "learning_rate": learning_rate,
        "inner_learning_rate": learning_rate,
        "outer_learning_rate": learning_rate,
        "num_steps": device.card["max_local_steps"],
    }
    taken = {}
    for name in device.signatures:
        inputs = {
            key: np.full(shape, numbers.get(key, 0), dtype)
            for key, (shape, dtype) in device.inputs(name).items()
        }
        if name == "adapt_steps":
            inputs["num_steps"][:] = 1
        taken[name] = _median_milliseconds(
            functools.partial(device.call, name, **inputs), repeats
        )
    return taken


def peak_memory(path: pathlib.Path) -> tuple[float, float]:
    """Returns the peak memory of a process that adapts the model, and its base, in MB.

    It starts with Python, NumPy and the runtime.
    """
    answer = subprocess.run(
        [sys.executable, "-c", _MEASURE_MEMORY, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    without, adapted = (float(word) / 1024 for word in answer.stdout.split())
    return adapted, without


# In a process of its own. Not its `ru_maxrss`, which begins with the parent's.
_MEASURE_MEMORY = """
import sys
import numpy as np
from tff_perfedavg.ondevice.runner import OnDeviceModel

def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name))

print(kilobytes("VmRSS"))
device = OnDeviceModel(sys.argv[1])
x = np.zeros([device.batch_size, *device.card["input_shape"]], np.float32)
y = np.zeros([device.batch_size, *device.card["label_shape"]])
device.infer(x)
device.adapt(x, y, 0.001)
print(kilobytes("VmHWM"))
"""


def _median_milliseconds(call, repeats: int) -> float:
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)

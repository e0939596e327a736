"""Benchmark of an exported file's client update, `meta_update`, on this machine."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import numpy as np

from tff_perfedavg import errors
from tff_perfedavg.ondevice.runner import OnDeviceModel

_SEED = 0


class UpdateTime(NamedTuple):
    """Cost of a client update: `fixed_s + steps * step_s` seconds, and bytes.

    Attributes:
      steps: the most local steps that the file takes.
      fixed_s: seconds beside the steps.
      step_s: seconds of a local step.
      bytes_down: of the weights that a client is sent, float32.
      bytes_up: of the update that it sends back, float32.
    """

    steps: int
    fixed_s: float
    step_s: float
    bytes_down: int
    bytes_up: int


def time_meta_update(model: OnDeviceModel, repeats: int = 15) -> UpdateTime:
    """Measures the time of a client update, and its bytes.

    Updates of one step and of all steps are timed in turn, and their medians taken. Two
    numbers of steps, since an update has a part that does not grow with them: weights
    are copied in and out.

    Args:
      model: the exported file, on as many threads as wanted. Its rows are full batches
        of noise: what is computed does not depend on what they hold.
      repeats: updates timed of each length.

    Raises:
      ModelError: if the file has no `meta_update`, or one of a single step, or a step's
        time is lost in the machine's noise.
    """
    most = model.card["max_local_steps"]
    if most < 2:
        raise errors.ModelError(
            "The time of a local step is the difference between two numbers of them, "
            f"and the file takes {most}; export it with max_local_steps of at least 2."
        )
    inputs = _inputs(model)
    seconds: dict[int, list[float]] = {1: [], most: []}
    # The first calls of a length allocate.
    for number in range(repeats + 2):
        for steps, taken in seconds.items():
            inputs["num_steps"] = np.array([steps], np.int32)
            start = time.perf_counter()
            answer = model.call("meta_update", **inputs)
            if number >= 2:
                taken.append(time.perf_counter() - start)
    one, all_steps = (statistics.median(taken) for taken in seconds.values())
    step = (all_steps - one) / (most - 1)
    if step <= 0:
        raise errors.ModelError(
            f"{most} local steps took {1e3 * all_steps:.3g} ms, and one "
            f"{1e3 * one:.3g}: too short to be told apart on this machine. Export the "
            "file with more max_local_steps, or measure while nothing else runs."
        )
    return UpdateTime(
        steps=most,
        fixed_s=max(one - step, 0.0),
        step_s=step,
        bytes_down=sum(v.nbytes for k, v in inputs.items() if k.startswith("weight")),
        bytes_up=sum(v.nbytes for k, v in answer.items() if k.startswith("delta")),
    )


def _inputs(model: OnDeviceModel) -> dict[str, np.ndarray]:
    """Returns the file's weights, tiny rates, and full batches of noise."""
    rng = np.random.default_rng(_SEED)
    classes = model.card["num_classes"]
    weights = {f"weight_{number}": w for number, w in enumerate(model.weights)}
    found: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in model.inputs("meta_update").items():
        if name.startswith("weight"):
            # What is not a weight is a learned rate's logarithm.
            found[name] = weights.get(name, np.zeros(shape, dtype))
        elif name.endswith("learning_rate"):
            found[name] = np.full(shape, 1e-6, dtype)
        elif name.startswith("y") and classes is not None:
            found[name] = rng.integers(0, classes, shape).astype(dtype)
        else:
            found[name] = rng.random(shape).astype(dtype)
    return found

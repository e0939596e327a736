"""Guarded adaptation on a device's runtime, by strategy and learning rate."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Rows, UserStore
from tff_perfedavg.ondevice.examples import in_turns
from tff_perfedavg.ondevice.runner import OnDeviceModel

# As in scripts/web_demo: one row in so many is held back, and so much above the best
# loss is no harm.
_HELD_BACK, _SLACK = 3, 1.25
STRATEGIES = (
    "all rows, all steps",
    "all rows, steps by the guard",
    "all rows, the best step",
    "rows not held back, the best step",
)


def play(
    device: OnDeviceModel, taught: Rows, judged: Rows, steps: int
) -> list[tuple[float, float]]:
    """Returns loss and accuracy of each of `STRATEGIES`, for one user.

    Args:
      device: the model, of users with labels of their own.
      taught: what the user teaches, in its order.
      judged: on what it is judged.
      steps: the most steps.
    """
    (x, y), rate = taught, device.card["inner_learning_rate"]
    held_back = np.zeros(len(y), bool)
    for label in np.unique(y):
        held_back[np.flatnonzero(y == label)[1::_HELD_BACK]] = True
    some = _teach(device, Rows(x[~held_back], y[~held_back]), steps, rate)
    checks = Rows(x[held_back], y[held_back])
    losses = np.array([_measure(device, weights, checks)[0] for weights in some])
    kept = int(np.flatnonzero(losses <= _SLACK * losses.min())[-1])
    best = int(np.argmin(losses))
    every = _teach(device, taught, steps, rate)
    chosen = every[-1], every[kept], every[best], some[best]
    return [_measure(device, weights, judged) for weights in chosen]


def play_at(
    device: OnDeviceModel, store: UserStore, user: int, factor: float, steps: int
) -> dict[str, float]:
    """Returns one user's accuracy with guarded and unguarded adaptation at a rate.

    Args:
      device: the model.
      store: the users.
      user: its number.
      factor: times the card's rate.
      steps: the most steps.

    Returns:
      Accuracy on the user's evaluation rows `before`, `guarded` and `unguarded`; steps
      `kept`, and the rows `checked`.
    """
    rate = factor * device.card["inner_learning_rate"]
    taught, judged = (
        store.scaled(rows(user)) for rows in (store.adaptation, store.evaluation)
    )
    device.reset()
    found = {"before": _measure(device, device.weights, judged)[1]}
    report = device.adapt_guarded(
        taught.x, taught.y, learning_rate=rate, num_steps=steps
    )
    found["guarded"] = _measure(device, device.weights, judged)[1]
    found |= {"kept": report.steps_kept, "checked": report.num_check_rows}
    device.reset()
    size = device.batch_size
    batches = np.array_split(in_turns(taught.y), -(-len(taught.y) // size))
    for step in range(steps):
        rows = batches[step % len(batches)]
        # What is not finite is not kept, by the file itself.
        with contextlib.suppress(errors.DataError):
            device.adapt(taught.x[rows], taught.y[rows], rate)
    found["unguarded"] = _measure(device, device.weights, judged)[1]
    return found


def summary(played: pd.DataFrame) -> dict[str, float]:
    """Returns means over users of `play_at`, and how many got worse and by how much.

    Args:
      played: a row for each user.
    """
    found = {
        "accuracy before, %": 100 * played.before.mean(),
        "accuracy guarded, %": 100 * played.guarded.mean(),
        "accuracy unguarded, %": 100 * played.unguarded.mean(),
        "steps kept": played.kept.mean(),
        "rows to check on": played.checked.mean(),
    }
    for how in ("guarded", "unguarded"):
        loss = played.before - played[how]
        found[f"users worse {how}"] = int((loss > 0).sum())
        found[f"largest loss {how}, points"] = 100 * max(0.0, loss.max())
    return {name: round(value, 1) for name, value in found.items()}


def rows_of(
    store: UserStore, user: int, per_label: int, *, wrong: bool
) -> tuple[Rows, Rows]:
    """Returns a user's rows to adapt on and rows to evaluate on.

    Args:
      store: the users.
      user: its number.
      per_label: the most rows of each label.
      wrong: whether the last row has the label of the one before it.
    """
    rows = store.scaled(store.adaptation(user))
    by_label = [np.flatnonzero(rows.y == label) for label in np.unique(rows.y)]
    # In turns, as people draw: one of each, then the second of each.
    turns = [[p[turn] for p in by_label if turn < len(p)] for turn in range(per_label)]
    places = np.concatenate(turns).astype(int)
    x, y = rows.x[places], rows.y[places].copy()
    if wrong:
        y[-1] = y[-2]
    return Rows(x, y), store.scaled(store.evaluation(user))


def _teach(
    device: OnDeviceModel, rows: Rows, steps: int, rate: float
) -> list[Sequence[np.ndarray]]:
    """Adapts from the initial weights; returns them after each step, from none."""
    device.reset()
    after: list[Sequence[np.ndarray]] = [device.weights]
    for _ in range(steps):
        device.adapt(rows.x, rows.y, rate)
        after.append(device.weights)
    return after


def _measure(
    device: OnDeviceModel, weights: Sequence[np.ndarray], rows: Rows
) -> tuple[float, float]:
    """Returns loss and accuracy with some weights."""
    device.set_weights(weights)
    probabilities = np.concatenate([device.infer(x[np.newaxis]) for x in rows.x])
    own = probabilities[np.arange(len(rows.y)), rows.y]
    hits = probabilities.argmax(1) == rows.y
    loss = -np.log(np.maximum(own, 1e-30)).mean()
    return float(loss), float(hits.mean())

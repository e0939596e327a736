"""The web page's guard, played on a device's runtime: what each strategy would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tff_perfedavg.data.user_store import Rows, UserStore
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


def rows_of(
    store: UserStore, user: int, per_label: int, *, wrong: bool
) -> tuple[Rows, Rows]:
    """Returns what a user teaches, and on what it is judged.

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

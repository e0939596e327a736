"""Measures the guard of the web page on new users of a store: accuracy by strategy.

  benchmark_guard.py --model=signs.tflite --store=results/stores/omniglot-seed0

Every new user teaches each of its labels by some rows, and is judged on its evaluation
rows. Of each label one row in three is held back, as the page does
(scripts/web_demo/lesson.js): steps are taken on the others, and the loss on those held
back tells how many count (scripts/web_demo/guard.js). Prints a table, and writes it as
CSV. Needs no TensorFlow.
"""

import pathlib

import numpy as np
from absl import flags

from tff_perfedavg.experiments.settings import command

# As in scripts/web_demo: one row in so many is held back, and so much above the best
# loss is no harm.
HELD_BACK, SLACK = 3, 1.25
STRATEGIES = (
    "all rows, all steps",
    "all rows, steps by the guard",
    "all rows, the best step",
    "rows not held back, the best step",
)


def define(flag_values):
    flags.DEFINE_string(
        "model",
        None,
        "A .tflite file of users with labels of their own.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "store", None, "A store of such users.", required=True, flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_users", 60, "New users, the first ones.", 1, flag_values=flag_values
    )
    flags.DEFINE_integer("steps", 20, "The most steps.", 1, flag_values=flag_values)
    flags.DEFINE_string(
        "output",
        "results/benchmark_guard.csv",
        "File of the table.",
        flag_values=flag_values,
    )


def teach(device, x, y, steps, rate):
    """Adapts from the initial weights, and returns them after each step, from none."""
    device.reset()
    after = [device.weights]
    for _ in range(steps):
        device.adapt(x, y, rate)
        after.append(device.weights)
    return after


def measure(device, weights, x, y):
    """Returns loss and accuracy with some weights."""
    device.set_weights(weights)
    probabilities = np.concatenate([device.infer(row[np.newaxis]) for row in x])
    own = probabilities[np.arange(len(y)), y]
    return -np.log(np.maximum(own, 1e-30)).mean(), (probabilities.argmax(1) == y).mean()


def play(device, taught, judged, steps):
    """Returns loss and accuracy of each strategy, for one user."""
    (x, y), rate = taught, device.card["inner_learning_rate"]
    held_back = np.zeros(len(y), bool)
    for label in np.unique(y):
        held_back[np.flatnonzero(y == label)[1::HELD_BACK]] = True
    some = teach(device, x[~held_back], y[~held_back], steps, rate)
    losses = [measure(device, w, x[held_back], y[held_back])[0] for w in some]
    kept = int(np.flatnonzero(losses <= SLACK * min(losses))[-1])
    best = int(np.argmin(losses))
    every = teach(device, x, y, steps, rate)
    chosen = every[-1], every[kept], every[best], some[best]
    return [measure(device, weights, *judged) for weights in chosen]


def rows_of(store, user, per_label, wrong):
    """Returns what a user teaches, and on what it is judged."""
    rows = store.scaled(store.adaptation(user))
    by_label = [np.flatnonzero(rows.y == label) for label in np.unique(rows.y)]
    # In turns, as people draw: one of each, then the second of each.
    turns = [[p[turn] for p in by_label if turn < len(p)] for turn in range(per_label)]
    places = np.concatenate(turns).astype(int)
    x, y = rows.x[places], rows.y[places].copy()
    if wrong:
        y[-1] = y[-2]
    return (x, y), store.scaled(store.evaluation(user))


def main(flag_values):
    import pandas as pd

    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.files import atomic_write
    from tff_perfedavg.ondevice.runner import OnDeviceModel

    device = OnDeviceModel(flag_values.model)
    store = UserStore.open(flag_values.store)
    users = store.new_users[: flag_values.num_users]
    columns = {}
    for per_label, wrong in ((3, False), (3, True), (4, False)):
        results = [
            play(device, *rows_of(store, user, per_label, wrong), flag_values.steps)
            for user in users
        ]
        loss, accuracy = np.mean(results, 0).T
        title = f"{per_label} rows a label" + (", one label wrong" if wrong else "")
        columns[f"{title}: accuracy %"] = (100 * accuracy).round(1)
        columns[f"{title}: loss"] = loss.round(3)
    table = pd.DataFrame(columns, index=pd.Index(STRATEGIES, name="weights"))
    print(f"{len(users)} new users, at most {flag_values.steps} steps\n")
    print(table.T.to_string())
    path = pathlib.Path(flag_values.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        table.to_csv(file)
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    command.run(main, define)

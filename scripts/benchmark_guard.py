"""Measures the guard of the web page on new users of a store: accuracy by strategy.

  benchmark_guard.py --model=signs.tflite --store=results/stores/omniglot-seed0

Every new user teaches each of its labels by some rows, and is judged on its evaluation
rows. Of each label one row in three is held back, as the page does
(scripts/web_demo/lesson.js): steps are taken on the others, and the loss on those held
back tells how many count (scripts/web_demo/guard.js). Prints a table, and writes it as
CSV. Needs no TensorFlow.
"""

import pathlib

from absl import flags

from tff_perfedavg.experiments.settings import command


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


def main(flag_values):
    import numpy as np
    import pandas as pd

    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.experiments.deploy import guard
    from tff_perfedavg.files import atomic_write
    from tff_perfedavg.ondevice.runner import OnDeviceModel

    device = OnDeviceModel(flag_values.model)
    store = UserStore.open(flag_values.store)
    users = store.new_users[: flag_values.num_users]
    columns = {}
    for per_label, wrong in ((3, False), (3, True), (4, False)):
        results = [
            guard.play(
                device,
                *guard.rows_of(store, user, per_label, wrong=wrong),
                flag_values.steps,
            )
            for user in users
        ]
        loss, accuracy = np.mean(results, 0).T
        title = f"{per_label} rows a label" + (", one label wrong" if wrong else "")
        columns[f"{title}: accuracy %"] = (100 * accuracy).round(1)
        columns[f"{title}: loss"] = loss.round(3)
    table = pd.DataFrame(columns, index=pd.Index(guard.STRATEGIES, name="weights"))
    print(f"{len(users)} new users, at most {flag_values.steps} steps\n")
    print(table.T.to_string())
    path = pathlib.Path(flag_values.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        table.to_csv(file)
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    command.run(main, define)

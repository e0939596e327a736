"""Measures guarded adaptation on new users of a store, by strategy and by rate.

  benchmark_guard.py --model=signs.tflite --store=results/stores/omniglot-seed0
  benchmark_guard.py --model=M.tflite --store=results/stores/S --rate_factors=1,10,100

With --rate_factors each user adapts by `adapt_guarded`, and unguarded by as many steps,
at so many times the rate of the card, on its adaptation rows; accuracy is told on its
evaluation rows, and how many users end worse.

Without, of users with labels of their own, every new user teaches each of its labels by
some rows, and is judged on its evaluation rows. Of each label one row in three is held
back, as the web page does (scripts/web_demo/lesson.js): steps are taken on the others,
and the loss on those held back tells how many count (scripts/web_demo/guard.js). Prints
a table, and writes it as CSV. Needs no TensorFlow.
"""

import pathlib

from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.experiments.settings import command


def define(flag_values):
    flags.DEFINE_string(
        "model",
        None,
        "A .tflite file.",
        required=True,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "store", None, "A store of its users.", required=True, flag_values=flag_values
    )
    flags.DEFINE_list(
        "rate_factors",
        [],
        "Times the rate of the card; empty for strategies at that rate.",
        flag_values=flag_values,
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


def by_strategy(device, store, users, steps):
    """The table of strategies."""
    import numpy as np
    import pandas as pd

    from tff_perfedavg.experiments.deploy import guard

    columns = {}
    for per_label, wrong in ((3, False), (3, True), (4, False)):
        results = [
            guard.play(
                device,
                *guard.rows_of(store, user, per_label, wrong=wrong),
                steps,
            )
            for user in users
        ]
        loss, accuracy = np.mean(results, 0).T
        title = f"{per_label} rows a label" + (", one label wrong" if wrong else "")
        columns[f"{title}: accuracy %"] = (100 * accuracy).round(1)
        columns[f"{title}: loss"] = loss.round(3)
    return pd.DataFrame(columns, index=pd.Index(guard.STRATEGIES, name="weights"))


def by_rate(device, store, users, factors, steps):
    """The table of rates."""
    import pandas as pd

    from tff_perfedavg.experiments.deploy import guard

    rows = []
    for factor in factors:
        played = pd.DataFrame(
            [guard.play_at(device, store, user, factor, steps) for user in users]
        )
        rows.append({"rate_factor": factor, **guard.summary(played)})
    return pd.DataFrame(rows).set_index("rate_factor")


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0.0 < factor < float("inf"):
        raise errors.ConfigError(
            f"rate_factors has {text!r}; give numbers above 0, for example 1,10,100."
        )
    return factor


def main(flag_values):
    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.files import atomic_write
    from tff_perfedavg.ondevice.runner import OnDeviceModel

    factors = [_factor(text) for text in flag_values.rate_factors]
    device = OnDeviceModel(flag_values.model)
    store = UserStore.open(flag_values.store)
    users = store.new_users[: flag_values.num_users]
    print(f"{len(users)} new users, at most {flag_values.steps} steps\n")
    if factors:
        table = by_rate(device, store, users, factors, flag_values.steps)
    else:
        table = by_strategy(device, store, users, flag_values.steps)
    print(table.T.to_string())
    path = pathlib.Path(flag_values.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        table.to_csv(file)
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    command.run(main, define)

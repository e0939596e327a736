"""What is advised for stores of which the right answer is known."""

import numpy as np
import pandas as pd
import pytest

from tests.needs import slow_but
from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.study import advice as advice_lib
from tff_perfedavg.experiments.study.advice import (
    ADAPT,
    ALIKE,
    AS_IS,
    METHODS,
    NO_GRADIENT,
    UNTOLD,
    Gain,
)

CLASSES, INPUTS = 4, 6
FEDAVG, FIRST_ORDER = METHODS.values()
SHARES, ALONE = "FedAvg + label shares", "local training to convergence"


def write(path, *, users, rows, judged, shares=None, own_labels=False, spread=1.0):
    """Users of Gaussian classes, the same for all but for what is said.

    Args:
      path: of the store.
      users: how many; a quarter of them are new.
      rows: that each adapts on.
      judged: that each is judged on.
      shares: concentration of users' shares of classes; by default all are equal.
      own_labels: whether each calls the classes as it likes.
      spread: of a class.
    """
    means = np.random.default_rng(0).normal(size=[CLASSES, INPUTS])

    def user(number):
        rng = np.random.default_rng([1, number])
        share = np.full(CLASSES, 1 / CLASSES)
        if shares is not None:
            share = rng.dirichlet(np.full(CLASSES, shares))
        names = rng.permutation(CLASSES) if own_labels else np.arange(CLASSES)

        def draw(count):
            y = rng.choice(CLASSES, count, p=share)
            x = means[y] + spread * rng.normal(size=[count, INPUTS])
            return Rows(x.astype(np.float32), names[y].astype(np.int32))

        return User(draw(rows), draw(judged), is_new=number % 4 == 3)

    return UserStore.write(path, map(user, range(users)), Description("made", CLASSES))


# Where users are alike, none gains. Where they differ in how often they see a class,
# and in nothing else, their label shares are all there is to know (Bayes' rule). Where
# each has names of its own for classes, only what it learns from its rows serves. Of a
# few users with a row or two nothing is told.
STORES = {
    ALIKE: {"users": 80, "rows": 40, "judged": 100},
    NO_GRADIENT: {
        **{"users": 80, "rows": 40, "judged": 60},
        **{"shares": 0.3, "spread": 2.0},
    },
    ADAPT: {"users": 60, "rows": 40, "judged": 40, "own_labels": True},
    UNTOLD: {"users": 16, "rows": 2, "judged": 2, "shares": 0.5, "spread": 2.0},
}
SAID = {
    ALIKE: "Personalization does not pay: take FedAvg's model as it is.",
    NO_GRADIENT: "needs no gradient: take FedAvg + label shares,",
    ADAPT: "Personalization pays: take ",
    UNTOLD: "Too few to tell: ",
}


@pytest.mark.parametrize("verdict", slow_but({NO_GRADIENT, ADAPT}, STORES))
def test_the_advice_is_the_known_answer(tmp_path, commands, capsys, verdict):
    write(tmp_path / "store", **STORES[verdict])
    root = tmp_path / "advice"
    command = (
        "advise.py",
        f"--store={tmp_path / 'store'}",
        f"--root_output_dir={root}",
        "--model=logistic_regression",
        "--total_rounds=30",
        "--clients_per_round=10",
        "--num_local_steps=5",
        "--inner_rates=0.1",
        "--outer_rates=0.1",
        "--steps=0,1,5,20",
    )
    assert commands.run(*command) == 0
    said = capsys.readouterr().out
    assert SAID[verdict] in said
    assert said.count("Cost: the model has 0.000112 MB") == 1
    assert SAID[verdict] in (root / "advice.txt").read_text()
    table = pd.read_csv(root / "advice.csv", index_col=0)
    assert {AS_IS, SHARES, ALONE, FEDAVG} <= set(table.index)
    assert (root / "advice.png").read_bytes().startswith(b"\x89PNG")
    if verdict == ADAPT:
        # Again, nothing is trained.
        assert commands.run(*command) == 0
        assert " of 2: " not in capsys.readouterr().out


def test_labels_that_are_no_classes_are_refused(tmp_path, commands, capsys):
    command = ("advise.py", "--dataset=sinusoid", "--model=mlp_regressor")
    assert commands.run(*command, f"--root_output_dir={tmp_path}") == 1
    assert "are no classes, and this compares accuracies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--steps=0", "steps is 0; give numbers of steps, one of them at least 1"),
        ("--steps=1,-1", "steps is 1,-1; give numbers of steps"),
        ("--inner_rates=0,1", "inner_learning_rate is 0.0; it must be"),
        ("--outer_rates=fast", "outer_rates has 'fast'; it takes numbers"),
    ],
)
def test_bad_flags_are_refused(commands, capsys, flag, message):
    assert commands.run("advise.py", flag) == 1
    assert message in capsys.readouterr().err


def judged(worthwhile=0.01, **accuracies):
    """What is made of 40 users' accuracies: a mean and a spread over users, by way."""
    rng = np.random.default_rng(0)
    names = {
        "as_is": AS_IS,
        "shares": SHARES,
        "alone": ALONE,
        "fed_avg": FEDAVG,
        "first_order": FIRST_ORDER,
    }
    by_user = pd.DataFrame(
        {
            names[name]: mean + spread * rng.permutation(np.linspace(-1, 1, 40))
            for name, (mean, spread) in accuracies.items()
        }
    )
    counts = {FEDAVG: 5, FIRST_ORDER: 1}
    return advice_lib._Judged.of(by_user, counts, worthwhile)


def test_first_order_is_taken_where_it_is_better_beyond_chance():
    same = {"as_is": (0.5, 0.0), "shares": (0.5, 0.0), "alone": (0.5, 0.0)}
    better = judged(**same, fed_avg=(0.7, 0.01), first_order=(0.8, 0.01))
    assert (better.verdict, better.method, better.num_steps) == (ADAPT, FIRST_ORDER, 1)
    by_chance = judged(**same, fed_avg=(0.7, 0.3), first_order=(0.71, 0.3))
    assert (by_chance.verdict, by_chance.method) == (ADAPT, FEDAVG)
    assert "take FedAvg and 5 steps" in by_chance.said()


def test_it_is_told_where_training_alone_does_as_well():
    ways = {"as_is": (0.5, 0.0), "shares": (0.5, 0.0)}
    ways |= {"fed_avg": (0.7, 0.01), "first_order": (0.7, 0.01)}
    better = judged(**ways, alone=(0.6, 0.01))
    assert "(+9." in better.said()
    assert "what is learned across users pays, too." in better.said()
    same = judged(**ways, alone=(0.7, 0.02))
    assert same.verdict == ADAPT
    assert "no federated training is needed" in same.said()


def test_a_gain_that_does_not_pay_is_no_reason_to_adapt():
    ways = {"as_is": (0.5, 0.0), "shares": (0.5, 0.0), "alone": (0.4, 0.0)}
    ways |= {"fed_avg": (0.52, 0.01), "first_order": (0.52, 0.01)}
    assert judged(**ways).verdict == ADAPT
    assert judged(worthwhile=0.05, **ways).verdict == ALIKE


def test_what_needs_no_gradient_goes_before_steps_that_give_no_more():
    ways = {"as_is": (0.5, 0.01), "alone": (0.4, 0.0)}
    ways |= {"fed_avg": (0.8, 0.01), "first_order": (0.8, 0.01)}
    assert judged(**ways, shares=(0.8, 0.01)).verdict == NO_GRADIENT
    assert judged(**ways, shares=(0.7, 0.01)).verdict == ADAPT


def test_of_few_users_it_is_told_how_many_would_tell():
    rng = np.random.default_rng(0)
    first = pd.Series(rng.normal(0.5, 0.2, 40))
    gain = Gain.between(first, first + rng.normal(0.05, 0.2, 40))
    half = (gain.high - gain.low) / 2
    same = judged(
        as_is=(0.5, 0.5),
        shares=(0.5, 0.5),
        alone=(0.5, 0.5),
        fed_avg=(0.52, 0.5),
        first_order=(0.52, 0.5),
    )
    assert same.verdict == UNTOLD
    # The width falls with the root of the number of users.
    wide = (same.gain.high - same.gain.low) / 2
    assert f"some {int(np.ceil(40 * (wide / 0.01) ** 2)):,} test users" in same.said()
    assert 0.04 < half < 0.09


def test_where_fed_avg_diverged_nothing_is_advised():
    outcomes = pd.DataFrame(
        {
            "method": [*METHODS],
            "inner_learning_rate": [np.nan, 0.1],
            "outer_learning_rate": 0.1,
            "seed": 0,
            "num_rows": 0,
            "diverged": [True, False],
        }
    )
    users = range(8)
    per_user = pd.DataFrame(
        {
            "method": "first_order",
            "inner_learning_rate": 0.1,
            "outer_learning_rate": 0.1,
            "adaptation_learning_rate": 0.1,
            "num_rows": 0,
            "seed": 0,
            "users": "seen",
            "user": [*users, *users],
            "step": np.repeat([0, 1], 8),
            "loss": 1.0,
            "accuracy": 0.5,
        }
    )
    axes = {
        "method": [*METHODS],
        "inner_learning_rate": [0.1],
        "outer_learning_rate": [0.1],
    }
    chosen = ["inner_learning_rate", "outer_learning_rate"]
    results = advice_lib.Results(axes, chosen, per_user, outcomes)
    with pytest.raises(errors.DataError, match="FedAvg diverged with all of its rates"):
        advice_lib.group_of(results)

"""Advice on whether, how and with how many steps to personalize for given users."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import BASELINE
from tff_perfedavg.experiments.evaluation import metrics
from tff_perfedavg.experiments.evaluation.baseline_names import (
    CENTROID,
    CONVERGED,
    LOCAL,
    MASKED,
    NEIGHBOUR,
    SHARES,
)
from tff_perfedavg.experiments.evaluation.metrics import NEW, SEEN
from tff_perfedavg.experiments.study import sweep
from tff_perfedavg.experiments.study.study import Run
from tff_perfedavg.experiments.study.sweep import Results

# What is advised.
ALIKE, NO_GRADIENT, ADAPT, UNTOLD = "alike", "no_gradient", "adapt", "untold"
METHODS = {BASELINE: "FedAvg", "first_order": "Per-FedAvg first-order"}
AS_IS = "FedAvg's model as it is"
_METHOD, _ROWS, _STEP = "method", "num_rows", "step"


class Gain(NamedTuple):
    """Mean paired gain over users, with its confidence interval.

    Attributes:
      mean: of the accuracy, over users.
      low: where its 95 % interval begins.
      high: where it ends.
      num_users: of the mean.
    """

    mean: float
    low: float
    high: float
    num_users: int

    @classmethod
    def between(cls, first: pd.Series, second: pd.Series) -> Gain:
        """Returns the paired gain of the second over the first, on the users of both.

        Args:
          first: accuracy from 0 to 1, indexed by user.
          second: the same of the other way.
        """
        difference = (second - first).dropna().to_numpy()
        return cls(difference.mean(), *metrics.interval(difference), len(difference))

    def __str__(self) -> str:
        mean, low, high = (f"{100 * value:+.1f}" for value in self[:3])
        return f"{mean} points ({low} to {high})"


@dataclasses.dataclass(frozen=True)
class Advice:
    """Advice for the users of a store, and the results behind it.

    Attributes:
      verdict: `alike` (one model serves everybody), `no_gradient` (what a user holds
        serves without a step), `adapt`, or `untold` (the users are too few to tell).
      sentences: the advice in words, the verdict first.
      group: the users that it is about, training users or new ones.
      by_user: a column of accuracy for each way, a row for each test user.
      by_step: mean accuracy, a row for each number of steps and a column a method.
      by_rows: the same for each number of rows.
    """

    verdict: str
    sentences: Sequence[str]
    group: str
    by_user: pd.DataFrame
    by_step: pd.DataFrame
    by_rows: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Returns each way's mean accuracy, and half the width of its interval."""
        return pd.DataFrame(
            {
                "accuracy": self.by_user.mean(),
                "half_width": self.by_user.apply(metrics.half_width),
            }
        )


def choose_adapted(results: Results) -> pd.DataFrame:
    """Returns test users' rows by method, at the validation users' rates and steps.

    Args:
      results: of a sweep over `METHODS`.

    Returns:
      Rows of one group: of new users where they are enough.

    Raises:
      DataError: as `group_of`.
    """
    group = group_of(results)
    taken = results.per_user[results.per_user[_STEP] > 0]
    adapted = sweep.choose(results._replace(per_user=taken))
    return adapted[adapted["users"] == group]


def with_fewer_rows(
    runs: Sequence[Run], adapted: pd.DataFrame, numbers: Sequence[int]
) -> list[Run]:
    """Returns the selected runs, to be adapted on fewer rows.

    Args:
      runs: of the sweep.
      adapted: of `choose_adapted`.
      numbers: of rows.
    """
    found = []
    for _, rows in adapted.groupby(_METHOD):
        choice = rows.iloc[0]
        (run,) = (
            run
            for run in runs
            if all(choice[name] == value for name, value in run.settings.items())
        )
        fewer = [
            dataclasses.replace(
                run.experiment.local.adaptation,
                inner_learning_rate=float(choice["adaptation_learning_rate"]),
                num_steps=int(choice[_STEP]),
                num_rows=number,
            )
            for number in numbers
        ]
        found.append(run._replace(adaptations=fewer))
    return found


def advise(
    results: Results, steps: Sequence[int], by_rows: pd.DataFrame, worthwhile: float
) -> Advice:
    """Returns advice on personalization for a store's users.

    Rates and numbers of steps are chosen by validation users, everything else is of
    test users, new ones where there are enough of them.

    Args:
      results: of a sweep over `METHODS`, with baselines.
      steps: numbers of steps that are told each, 0 among them.
      by_rows: test users' rows of `choose_adapted`, and of the same on fewer rows,
        `num_rows` of each. The group is theirs.
      worthwhile: the least gain that pays, an accuracy.
    """
    adapted = by_rows[by_rows[_ROWS] == by_rows[_ROWS].max()]
    group = str(adapted["users"].iloc[0])
    of_step = sweep.choose(results._replace(steps=steps))
    of_step = of_step[of_step["users"] == group]
    is_start = (of_step[_METHOD] == BASELINE) & (of_step[_STEP] == 0)
    ways = {AS_IS: _by_user(of_step[is_start]), **_ways(results, group)}
    counts = {}
    for method, rows in adapted.groupby(_METHOD):
        ways[METHODS[method]] = _by_user(rows)
        counts[METHODS[method]] = int(rows[_STEP].iloc[0])
    by_step = of_step.pivot_table("accuracy", _STEP, _METHOD).rename(columns=METHODS)
    judged = _Judged.of(pd.DataFrame(ways), counts, worthwhile)
    sentences = [
        judged.said(),
        *_said_of_steps(by_step[judged.method], counts[judged.method], worthwhile),
        *_said_of_rows(by_rows, judged.method, worthwhile),
    ]
    return Advice(
        judged.verdict,
        sentences,
        group,
        pd.DataFrame(ways),
        by_step,
        by_rows.pivot_table("accuracy", _ROWS, _METHOD).rename(columns=METHODS),
    )


def group_of(results: Results) -> str:
    """Returns the group that advice is about: new users where they are enough.

    Raises:
      DataError: if FedAvg diverged with all rates, or users are too few to be divided.
    """
    rows = sweep.choose(results)
    if BASELINE not in set(rows[_METHOD]):
        raise errors.DataError(
            "FedAvg diverged with all of its rates; give smaller ones (outer_rates)."
        )
    counts = rows.groupby("users")["user"].nunique()
    new, seen = counts.get(NEW, 0), counts.get(SEEN, 0)
    return NEW if new and new >= min(metrics.FEWEST_RESAMPLED, seen) else SEEN


class _Judged(NamedTuple):
    """The verdict: adapting by a method, a baseline without a gradient, or neither."""

    verdict: str
    method: str
    num_steps: int
    free: str
    gain: Gain
    free_gain: Gain
    over_free: Gain
    over_alone: Gain
    worthwhile: float

    @classmethod
    def of(
        cls, by_user: pd.DataFrame, counts: dict[str, int], worthwhile: float
    ) -> _Judged:
        method = METHODS[BASELINE]
        other = METHODS["first_order"]
        # The simpler one, unless the other is better beyond chance.
        if other in counts and Gain.between(by_user[method], by_user[other]).low > 0:
            method = other
        free = _best(by_user, [SHARES, NEIGHBOUR, CENTROID])
        gain = Gain.between(by_user[AS_IS], by_user[method])
        free_gain = Gain.between(by_user[AS_IS], by_user[free])
        over_free = Gain.between(by_user[free], by_user[method])
        alone = _best(by_user, [LOCAL, CONVERGED])
        over_alone = Gain.between(by_user[alone], by_user[method])
        if max(gain.high, free_gain.high) < worthwhile:
            verdict = ALIKE
        elif free_gain.low > 0 and over_free.high < worthwhile:
            verdict = NO_GRADIENT
        elif gain.low > 0 and gain.mean >= worthwhile:
            verdict = ADAPT
        else:
            verdict = UNTOLD
        return cls(
            verdict,
            method,
            counts[method],
            free,
            gain,
            free_gain,
            over_free,
            over_alone,
            worthwhile,
        )

    def said(self) -> str:
        """Returns the verdict as a sentence."""
        if self.verdict == ALIKE:
            return (
                "Personalization does not pay: take FedAvg's model as it is. Adapting "
                f"gives {self.gain}."
            )
        if self.verdict == NO_GRADIENT:
            return (
                f"Personalization pays, and needs no gradient: take {self.free}, which "
                f"gives {self.free_gain} over FedAvg's model as it is; adapting by "
                f"{self.method} has {self.over_free} over that."
            )
        if self.verdict == ADAPT:
            return (
                f"Personalization pays: take {self.method} and {self.num_steps} steps, "
                f"which give {self.gain} over FedAvg's model as it is, and "
                f"{self.over_free} over {self.free}. {self._said_of_alone()}"
            )
        return self._said_of_few()

    def _said_of_alone(self) -> str:
        told = f"Over training alone that is {self.over_alone}"
        if self.over_alone.low > 0:
            return f"{told}: what is learned across users pays, too."
        return (
            f"{told}: that anything is learned across users is not shown, and without "
            "it no federated training is needed."
        )

    def _said_of_few(self) -> str:
        half = (self.gain.high - self.gain.low) / 2
        told = f"Too few to tell: adapting gives {self.gain} on {self.gain.num_users}"
        if math.isnan(half):
            return f"{told} users, who are too few for an interval."
        needed = math.ceil(self.gain.num_users * (half / self.worthwhile) ** 2)
        return (
            f"{told} users. To tell {100 * self.worthwhile:g} points some {needed:,} "
            "test users like these are needed, or more rows to judge each by."
        )


def _ways(results: Results, group: str) -> dict[str, pd.Series]:
    """Returns users' accuracies by what needs no other users' steps, by name."""
    ways = {}
    for name, _, test in sweep.baseline_rows(results):
        rows = test[test["users"] == group]
        if len(rows) and not name.endswith(MASKED):
            ways[name] = _by_user(rows)
    return ways


def _best(by_user: pd.DataFrame, kinds: Sequence[str]) -> str:
    """Returns the best way of some kinds."""
    names = [n for n in by_user if any(n.endswith(kind) for kind in kinds)]
    return str(by_user[names].mean().idxmax())


def _by_user(rows: pd.DataFrame) -> pd.Series:
    """Returns each user's accuracy, its mean over seeds."""
    return rows.groupby("user")["accuracy"].mean()


def _said_of_steps(by_step: pd.Series, chosen: int, worthwhile: float) -> list[str]:
    """Returns what is told of fewer steps than were chosen."""
    best = by_step.max()
    enough = [step for step in by_step.index if by_step[step] > best - worthwhile]
    if not enough or enough[0] in (0, chosen):
        return []
    fewest = enough[0]
    told = f"{100 * by_step[fewest]:.1f} % after {fewest}, {100 * best:.1f} at best"
    return [f"Fewer steps do nearly as well: {told}."]


def _said_of_rows(rows: pd.DataFrame, method: str, worthwhile: float) -> list[str]:
    """Returns what is told of more rows than users have."""
    own = rows[rows[_METHOD].map(METHODS) == method]
    numbers = np.sort(own[_ROWS].unique())
    if len(numbers) < 2:
        return []
    fewer, most = numbers[-2:]
    gain = Gain.between(*(_by_user(own[own[_ROWS] == n]) for n in (fewer, most)))
    told = f"{most} rows a user in the place of {fewer} give {gain}"
    if gain.low > 0 and gain.mean >= worthwhile:
        return [f"More rows would help: {told}."]
    if gain.high < worthwhile:
        return [f"There are rows enough: {told}."]
    return [f"Whether more rows would help is not told: {told}."]

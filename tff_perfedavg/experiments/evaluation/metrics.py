"""Summary statistics of per-user results, and paired comparisons of algorithms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from tff_perfedavg import errors
from tff_perfedavg.experiments.evaluation.measured_adaptation import (
    COLUMN as ADAPTATION,
)
from tff_perfedavg.experiments.evaluation.significance import sign_flip_p_value

# The groups of users: of training, and held out of it.
SEEN, NEW = "seen", "new"
# The kinds of rows of a table: what training across users is worth is to be seen beside
# what can be had without it.
BASELINE, METHOD = "baseline", "method"
# Fewer users have no interval: the users say too little of their own spread, and no
# exact test of five could reject at 5 % (2 of its 32 signs are 6 %).
FEWEST_USERS = 6
# Fewer users have Student's interval: a percentile bootstrap of so few is too narrow.
FEWEST_RESAMPLED = 20
# A run's mean is one over many users, close to normal: two will do.
_FEWEST_SEEDS = 2


def summarize(per_user: pd.DataFrame) -> pd.DataFrame:
    """Returns summary statistics over users, by group, algorithm and step.

    Args:
      per_user: rows of `evaluate_users` with two more columns: `algorithm`, and
        `seed` if there is more than one run of an algorithm. A user counts once
        per run; a user without evaluation rows does not count. With rows of baselines
        among them, a column `baseline`, their name, which methods' rows lack.

    Returns:
      One row per (`users`, `algorithm`, `step`), in the order they first appear, with
      `kind` (`baseline` or `method`) behind `users` if there are baselines,
      with `accuracy`, `accuracy_sd` (standard deviation over users), `accuracy_p10`,
      `accuracy_p50`, `accuracy_p90` (percentiles over users), `worst_decile` and
      `best_decile` (mean accuracy of the worst and the best tenth of users),
      `made_worse` (fraction of users worse off than before adapting: less accurate
      or, where labels are no classes, with a higher loss; NaN for an algorithm that
      takes no steps), `cosine_fairness` and `entropy_fairness` of the accuracies,
      `loss` and `num_users`, and `adaptation` if the rows have that.
    """
    run = [name for name in ("algorithm", "seed", "users", "user") if name in per_user]
    per_user = per_user.dropna(subset=["loss"])
    merit = per_user["accuracy"].fillna(-per_user["loss"])
    per_user = per_user.assign(merit=merit)
    before = per_user[per_user["step"] == 0].set_index(run)["merit"]
    per_user = per_user.join(before.rename("before"), on=run)
    is_worse = (per_user["merit"] < per_user["before"]).astype(float)
    takes_steps = per_user.groupby("algorithm")["step"].transform("max") > 0
    per_user["is_worse"] = is_worse.where(takes_steps)
    by = ["users", "algorithm", "step"]
    if BASELINE in per_user:
        per_user = with_kind(per_user)
        by.insert(1, "kind")
    accuracy = "accuracy"
    told = {n: (n, "first") for n in (ADAPTATION,) if n in per_user}
    return per_user.groupby(by, sort=False).agg(
        accuracy=(accuracy, "mean"),
        accuracy_sd=(accuracy, "std"),
        accuracy_p10=(accuracy, lambda a: a.quantile(0.1)),
        accuracy_p50=(accuracy, "median"),
        accuracy_p90=(accuracy, lambda a: a.quantile(0.9)),
        worst_decile=(accuracy, lambda a: a.nsmallest(_tenth(a)).mean()),
        best_decile=(accuracy, lambda a: a.nlargest(_tenth(a)).mean()),
        made_worse=("is_worse", "mean"),
        cosine_fairness=(accuracy, cosine_fairness),
        entropy_fairness=(accuracy, entropy_fairness),
        loss=("loss", "mean"),
        num_users=("loss", "size"),
        **told,
    )


def with_kind(per_user: pd.DataFrame) -> pd.DataFrame:
    """Adds a column `kind`: `baseline` or `method`."""
    if BASELINE not in per_user:
        return per_user.assign(kind=METHOD)
    kinds = np.where(per_user[BASELINE].isna(), METHOD, BASELINE)
    return per_user.assign(kind=kinds)


def quantity(per_user: pd.DataFrame) -> str:
    """Returns the column users are judged by: `loss` where labels are no classes."""
    return "accuracy" if per_user["accuracy"].notna().any() else "loss"


def mean_rows(per_user: pd.DataFrame) -> list[dict[str, Any]]:
    """Means over users, by group and step, as lines of a log.

    Args:
      per_user: rows of `evaluate_users`.

    Returns:
      One dictionary per group and step, with `users`, `step`, `accuracy`,
      `accuracy_sem` and `loss`, `loss_sem` (means and their standard errors over
      users), `num_users`.
    """
    by_step = per_user.dropna(subset=["loss"]).groupby(["users", "step"], sort=False)
    table = by_step.agg(
        accuracy=("accuracy", "mean"),
        accuracy_sem=("accuracy", "sem"),
        loss=("loss", "mean"),
        loss_sem=("loss", "sem"),
        num_users=("loss", "size"),
    )
    return table.reset_index().astype(object).to_dict("records")


def mean_with_intervals(
    per_user: pd.DataFrame, *, column: str = "accuracy", confidence: float = 0.95
) -> pd.Series:
    """Returns a mean with Student-t intervals over seeds and over users.

    Args:
      per_user: one row per `user` and `seed`: one algorithm, group and step.
      column: `accuracy` or `loss`.
      confidence: of both intervals.

    Returns:
      `mean`; `over_seeds`, half the width of the interval of the runs' means (NaN for
      a single run); `over_users`, the same of the users' means over their runs, which
      are no independent users (NaN for fewer than `FEWEST_USERS`); `num_seeds`,
      `num_users`.
    """
    values = per_user.dropna(subset=[column])
    seeds = values.groupby("seed")[column].mean()
    users = values.groupby("user")[column].mean()
    return pd.Series(
        {
            "mean": values[column].mean(),
            "over_seeds": half_width(seeds, _FEWEST_SEEDS, confidence),
            "over_users": half_width(users, FEWEST_USERS, confidence),
            "num_seeds": len(seeds),
            "num_users": len(users),
        }
    )


def half_width(
    values: pd.Series, fewest: int = FEWEST_USERS, confidence: float = 0.95
) -> float:
    """Returns half the width of a mean's Student-t confidence interval.

    Args:
      values: one of each user, or of each seed.
      fewest: values without which there is no interval.
      confidence: of the interval, in (0, 1).

    Returns:
      In the values' unit; NaN for fewer than `fewest`.
    """
    return t_quantile(len(values), fewest, confidence) * float(values.sem())


def t_quantile(
    count: int, fewest: int = FEWEST_USERS, confidence: float = 0.95
) -> float:
    """Returns Student's t quantile of a two-sided confidence interval.

    Args:
      count: of values.
      fewest: values without which there is no interval.
      confidence: of the interval, in (0, 1).

    Returns:
      Half the width in standard errors of the mean; NaN for fewer than `fewest`.
    """
    if count < fewest:
        return float("nan")
    return float(scipy.stats.t.ppf((1 + confidence) / 2, count - 1))


def cosine_fairness(accuracy: np.ndarray | pd.Series) -> float:
    """Cosine between the users' accuracies and a vector of ones (arXiv 1905.10497).

    1 where all users fare alike, 1 / sqrt(n) where one of n has all; NaN where no
    user is right in anything.
    """
    a = np.asarray(accuracy, np.float64)
    norm = np.linalg.norm(a)
    return float(a.sum() / (np.sqrt(len(a)) * norm)) if norm > 0 else float("nan")


def entropy_fairness(accuracy: np.ndarray | pd.Series) -> float:
    """Entropy of the users' shares of all accuracy, over its maximum, log n.

    1 where all users fare alike (arXiv 1905.10497), 0 where one has all; NaN for a
    single user and where no user is right in anything.
    """
    a = np.asarray(accuracy, np.float64)
    if len(a) < 2 or not a.sum() > 0:
        return float("nan")
    return float(scipy.stats.entropy(a) / np.log(len(a)))


def compare_paired(
    per_user: pd.DataFrame,
    step: int | None,
    *,
    column: str = "accuracy",
    confidence: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> pd.DataFrame:
    """Compares all pairs of algorithms by paired bootstrap and permutation test.

    Args:
      per_user: as for `summarize`. With several seeds a user's difference is its mean
        over them: its runs are no independent users.
      step: after how many adaptation steps; None if the rows are of one each.
      column: `accuracy` or `loss`.
      confidence: of the interval of the mean difference.
      num_resamples: of users, for the bootstrap.
      seed: of the resampling.

    Returns:
      One row per (`users`, `first`, `second`), with `difference` (mean over users of
      the second's value less the first's), its interval from `low` to `high`
      (percentile bootstrap over users; Student's for fewer than `FEWEST_RESAMPLED`
      users, NaN for fewer than `FEWEST_USERS`), and how many users have a higher, a
      lower and an equal value with the second: `num_better`, `num_worse`, `num_equal`
      (for `loss`, lower is better); and `p_value`, of `sign_flip_p_value`.

    Raises:
      DataError: if an algorithm lacks a user that another has.
    """
    if step is not None:
        per_user = per_user[per_user["step"] == step]
    wide = _by_algorithm(per_user, column)
    rows = []
    for first, second in itertools.combinations(wide.columns, 2):
        difference = (
            (wide[second] - wide[first])
            .groupby(level=["users", "user"], sort=False)
            .mean()
        )
        for group in difference.index.unique("users"):
            of_users = difference.xs(group, level="users").to_numpy()
            low, high = interval(of_users, confidence, num_resamples, seed)
            better = of_users if column == "accuracy" else -of_users
            rows.append(
                {
                    "users": group,
                    "first": first,
                    "second": second,
                    "difference": of_users.mean(),
                    "low": low,
                    "high": high,
                    "num_better": int((better > 0).sum()),
                    "num_worse": int((better < 0).sum()),
                    "num_equal": int((better == 0).sum()),
                    "p_value": sign_flip_p_value(of_users, seed),
                }
            )
    return pd.DataFrame(rows).set_index(["users", "first", "second"])


def _by_algorithm(per_user: pd.DataFrame, column: str) -> pd.DataFrame:
    """Returns a row per user and run, a column per algorithm; checks for gaps."""
    runs = [name for name in ("users", "user", "seed") if name in per_user]
    chosen = per_user.dropna(subset=[column])
    wide = chosen.pivot_table(column, runs, "algorithm", sort=False)
    if wide.isna().any(axis=None):
        algorithm = wide.columns[wide.isna().any()][0]
        raise errors.DataError(
            f"{algorithm} lacks results of users that others have; evaluate all "
            "algorithms on the same users."
        )
    return wide


def interval(
    values: np.ndarray,
    confidence: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the bootstrap confidence interval of a mean, from low to high.

    Args:
      values: float `[users]`.
      confidence: of the interval.
      num_resamples: of users, for the percentile bootstrap; fewer than
        `FEWEST_RESAMPLED` users have Student's, fewer than `FEWEST_USERS` NaN.
      seed: of the resampling.
    """
    if len(values) < FEWEST_RESAMPLED:
        half = half_width(pd.Series(values), FEWEST_USERS, confidence)
        return values.mean() - half, values.mean() + half
    found = scipy.stats.bootstrap(
        [values],
        np.mean,
        n_resamples=num_resamples,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def _tenth(users: pd.Series) -> int:
    return max(1, round(len(users) / 10))

"""Hyper-parameters selected on validation users and reported on test users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tff_perfedavg import errors

# The halves of the users.
VALIDATION, TEST = 0, 1
# Sets this draw apart from every other use of the same seed.
_VALIDATION_USERS = 4


def validation_users(users: np.ndarray, seed: int) -> np.ndarray:
    """Returns the validation users: a random half of them, the larger one.

    Args:
      users: int `[users]`, numbers.
      seed: of the draw.

    Returns:
      bool `[users]`.

    Raises:
      DataError: if there are fewer than two users.
    """
    if len(users) < 2:
        raise errors.DataError(
            f"{len(users)} user to choose hyper-parameters and to report them; at "
            "least two are needed, one for each."
        )
    # By number, so that the order of the rows has no influence.
    order = np.argsort(users)
    rng = np.random.default_rng([seed, _VALIDATION_USERS])
    chosen = np.zeros(len(users), bool)
    chosen[order[rng.permutation(len(users))[: (len(users) + 1) // 2]]] = True
    return chosen


def select(
    per_user: pd.DataFrame,
    of: Sequence[str],
    choose: Sequence[str],
    *,
    seed: int = 0,
    divided: pd.DataFrame | None = None,
    directions: Sequence[int] = (VALIDATION,),
) -> pd.DataFrame:
    """Selects hyper-parameters on validation users; returns the test users' rows.

    Training and new users each choose for themselves. What is best has the highest mean
    accuracy of the validation users over all seeds (where labels are no classes, the
    lowest loss); of several, the one of fewest steps.

    Args:
      per_user: rows of `read_study`.
      of: columns that are compared: one choice is made for each of their combinations.
      choose: columns that are chosen, `step` among them or not.
      seed: of the division into validation and test users; the same number of a user
        is on the same side in every run. Where runs of several seeds divide a data set
        anew, that is another user, whose rows a user of the other side may hold in
        another run; train on one store where that matters.
      divided: rows whose users are divided, where `per_user` has not all of them; by
        default `per_user`.
      directions: which halves choose for the other: `VALIDATION` alone, `TEST` alone,
        or both (cross-fitting), so that the rows of all users are returned, each with
        what the other half chose.

    Returns:
      Rows of the users chosen for alone, those of the choice. Of both directions with a
      last column `chosen_by`, the half that chose.

    Raises:
      DataError: if a group has fewer than two users.
    """
    rows = per_user.dropna(subset=["loss"])
    kept = []
    everyone = rows if divided is None else divided.dropna(subset=["loss"])
    for name, group in rows.groupby("users", sort=False):
        users = np.sort(everyone[everyone["users"] == name]["user"].unique())
        validating = users[validation_users(users, seed)]
        is_validation = group["user"].isin(validating)
        for half in directions:
            choosing = is_validation if half == VALIDATION else ~is_validation
            best = _best(group[choosing], of, choose)
            chosen = group[~choosing].merge(best, on=[*of, *choose])
            kept.append(chosen.assign(chosen_by=half))
    found = pd.concat(kept, ignore_index=True)
    return found if len(directions) > 1 else found.drop(columns="chosen_by")


def _best(rows: pd.DataFrame, of: Sequence[str], choose: Sequence[str]) -> pd.DataFrame:
    """Returns what these users choose, for each combination of `of`."""
    merit = rows["accuracy"].fillna(-rows["loss"])
    means = (
        rows.assign(merit=merit)
        .groupby([*of, *choose], dropna=False, sort=False)["merit"]
        .mean()
        .reset_index()
    )
    by = ["merit", *(["step"] if "step" in choose else [])]
    best = means.sort_values(by, ascending=[False, True][: len(by)], kind="stable")
    best = best.drop_duplicates(of) if of else best.head(1)
    return best.drop(columns="merit")

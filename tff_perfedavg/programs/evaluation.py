"""What users make of an initial model: per user, then in a table and a figure."""

from __future__ import annotations

import collections
import itertools
import pathlib
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
import pandas as pd
import tensorflow_federated as tff

from tff_perfedavg.algorithms.client_data import client_dataset
from tff_perfedavg.algorithms.personalization_eval import build_personalization_eval
from tff_perfedavg.data.population import Population
from tff_perfedavg.models.model import Model
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.programs.files import atomic_write

SEEN, NEW = "seen", "new"
_GROUPS = {
    SEEN: "users seen in training",
    NEW: "new users",
}
# Told apart by more than colour, for curves that coincide.
_STYLES = ("o-", "s--", "^-", "D:")


def evaluate_users(
    model: Model,
    weights: Sequence[np.ndarray],
    population: Population,
    config: AdaptationConfig,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Adapts and measures every user of a population, seen and new.

    Args:
      model: the model.
      weights: its initial weights.
      population: the users.
      config: the adaptation, m steps.
      seed: of the adaptation's batches, if it draws any.

    Returns:
      One row per user and step 0..m, with columns `users` (`seen` or `new`),
      `user`, `step`, `loss`, `accuracy` (from 0 to 1), `num_adaptation_examples`
      and `num_evaluation_examples`.
    """
    evaluate = build_personalization_eval(model, config, seed=seed)
    server_weights = tff.learning.models.ModelWeights(tuple(weights), ())
    frames = []
    for group, users in (
        (SEEN, population.training_users),
        (NEW, population.new_users),
    ):
        if not len(users):
            continue
        clients = [
            collections.OrderedDict(
                adaptation=client_dataset(user, rows.x, rows.y),
                evaluation=client_dataset(user, held_out.x, held_out.y),
            )
            for user, rows, held_out in (
                (u, population.adaptation[u], population.evaluation[u]) for u in users
            )
        ]
        for result in evaluate(server_weights, clients):
            frame = pd.DataFrame(
                {"loss": result["loss"], "accuracy": result["accuracy"]}
            )
            frame.insert(0, "step", np.arange(len(frame)))
            frame.insert(0, "user", result["user"])
            frame.insert(0, "users", group)
            for name in ("num_adaptation_examples", "num_evaluation_examples"):
                frame[name] = result[name]
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def summarize(per_user: pd.DataFrame) -> pd.DataFrame:
    """Sums up users, each algorithm, group and step apart.

    Args:
      per_user: rows of `evaluate_users` with two more columns: `algorithm`, and
        `seed` if there is more than one run of an algorithm. A user counts once
        per run; a user without accuracy (no evaluation rows) does not count.

    Returns:
      One row per (`users`, `algorithm`, `step`), in the order they first appear,
      with `accuracy`, `accuracy_sd` (standard deviation over users),
      `worst_decile` (mean over the worst tenth of users), `made_worse` (fraction
      of users less accurate than before adapting), `loss` and `num_users`.
    """
    run = [name for name in ("algorithm", "seed", "users", "user") if name in per_user]
    per_user = per_user.dropna(subset=["accuracy"])
    before = per_user[per_user["step"] == 0].set_index(run)["accuracy"]
    per_user = per_user.join(before.rename("before"), on=run)
    keys = ["users", "algorithm", "step"]
    groups = per_user.groupby(keys, sort=False)
    summary = groups.agg(
        accuracy=("accuracy", "mean"),
        accuracy_sd=("accuracy", "std"),
        worst_decile=("accuracy", _worst_decile),
        loss=("loss", "mean"),
        num_users=("accuracy", "size"),
    )
    summary["made_worse"] = groups.apply(
        lambda g: (g["accuracy"] < g["before"]).mean(), include_groups=False
    )
    columns = ["accuracy", "accuracy_sd", "worst_decile", "made_worse", "loss"]
    return summary[[*columns, "num_users"]]


def _worst_decile(accuracy: pd.Series) -> float:
    count = max(1, round(len(accuracy) / 10))
    return accuracy.nsmallest(count).mean()


def format_table(summary: pd.DataFrame, steps: Sequence[int]) -> str:
    """Lays the chosen steps of a summary out for a terminal, in percent."""
    chosen = summary.loc[summary.index.get_level_values("step").isin(steps)]
    percent = pd.DataFrame(
        {
            "accuracy %": 100 * chosen["accuracy"],
            "sd over users": 100 * chosen["accuracy_sd"],
            "worst decile": 100 * chosen["worst_decile"],
            "made worse %": 100 * chosen["made_worse"],
            "loss": chosen["loss"],
        }
    )
    parts = []
    for group in percent.index.unique("users"):
        table = percent.xs(group, level="users")
        table.index.names = ["algorithm", "steps"]
        text = table.to_string(
            formatters={"loss": "{:.3f}".format}, float_format="{:.1f}".format
        )
        num_users = chosen.xs(group, level="users")["num_users"].max()
        parts.append(f"{_GROUPS[group].capitalize()} ({num_users}):\n{text}")
    return "\n\n".join(parts)


def draw_adaptation_curves(per_user: pd.DataFrame, path: pathlib.Path) -> None:
    """Draws mean accuracy by adaptation step, one panel a group, as a PNG.

    Args:
      per_user: as for `summarize`.
      path: the file to write.
    """
    groups = per_user["users"].unique()
    figure = matplotlib.figure.Figure(figsize=(4.8 * len(groups), 4.2))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for panel, group in zip(panels, groups):
        of_group = per_user[per_user["users"] == group]
        by_algorithm = of_group.groupby("algorithm", sort=False)
        for (algorithm, rows), style in zip(by_algorithm, itertools.cycle(_STYLES)):
            by_step = rows.groupby("step")["accuracy"]
            mean, error = 100 * by_step.mean(), 100 * by_step.sem()
            (line,) = panel.plot(
                mean.index, mean, style, fillstyle="none", label=algorithm
            )
            panel.fill_between(
                mean.index,
                mean - error,
                mean + error,
                alpha=0.15,
                color=line.get_color(),
            )
        panel.set_title(_GROUPS[group].capitalize())
        panel.set_xlabel("adaptation steps (number)")
        panel.set_xticks(sorted(per_user["step"].unique()))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(
        "accuracy on held-out rows (%),\nmean ± standard error over users"
    )
    panels[-1].legend(loc="lower right")
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)

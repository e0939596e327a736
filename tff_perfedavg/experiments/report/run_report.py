"""HTML report of one or several runs: who gains from personalization, who does not."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jinja2
import matplotlib.figure
import numpy as np
import pandas as pd

from tff_perfedavg import __version__, errors
from tff_perfedavg.data import heterogeneity
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.fleet import build_fleet_of_run
from tff_perfedavg.experiments.assemble.population import build_population
from tff_perfedavg.experiments.evaluation.baseline_names import combine
from tff_perfedavg.experiments.evaluation.classes_held import with_classes_held
from tff_perfedavg.experiments.evaluation.measured_adaptation import (
    MeasuredAdaptation,
    differences,
    sentences,
)
from tff_perfedavg.experiments.evaluation.metrics import (
    FEWEST_USERS,
    compare_paired,
    quantity,
    summarize,
)
from tff_perfedavg.experiments.files import hparams, trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths, run_labels
from tff_perfedavg.experiments.report import figures, fleet_section
from tff_perfedavg.experiments.report import tables as report
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import atomic_write

_TEMPLATE = "run_report.html.jinja"
# What they are, under a table.
_BASELINES = "Baselines owe nothing to adapting a trained model: "
_BY_LABELS = (
    "they go by label shares alone (majority class, absent classes masked, label "
    "shares), or "
)
_ALONE = (
    "every user trains alone from the random start, to convergence or, for each number "
    "of steps, at the rate of several that suits its own rows best."
)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run's settings and results, as read for a report.

    Attributes:
      label: what it is called on the page.
      experiment: its settings.
      rounds: one row per round.
      curves: rows of its evaluations while it trained; None if there were none.
      per_user: what every user made of its model.
      measured: how users adapted it.
      baselines: what users reach without it; None if that was not measured, or by
        another adaptation.
      has_other_baselines: whether there are some that are.
      facts: what it took and ran on, empty if not known.
      population: its users.
      fleet: what its fleet left behind; None without one.
    """

    label: str
    experiment: Experiment
    rounds: pd.DataFrame
    curves: pd.DataFrame | None
    per_user: pd.DataFrame
    measured: MeasuredAdaptation
    baselines: pd.DataFrame | None
    has_other_baselines: bool
    facts: Mapping
    population: UserStore
    fleet: fleet_section.FleetRecord | None = None


def read_runs(runs: Sequence[RunPaths]) -> list[RunRecord]:
    """Reads the results of runs for a report.

    Raises:
      CheckpointError: naming the file that is missing or unreadable.
    """
    loaded = [trained_model.load(run.model)[1] for run in runs]
    labels = run_labels(runs, loaded)
    records = []
    for run, label, experiment in zip(runs, labels, loaded, strict=True):
        per_user = _read_csv(run.per_user).assign(algorithm=label)
        population = build_population(experiment, run.root)
        measured = MeasuredAdaptation.read(per_user, run.per_user)
        baselines = None
        has_other = False
        if run.has_baselines:
            found = with_classes_held(_read_csv(run.baselines), population)
            has_other = MeasuredAdaptation.read(found, run.baselines) != measured
            baselines = None if has_other else found
        records.append(
            RunRecord(
                label,
                experiment,
                _read_csv(run.metrics),
                _read_csv(run.evaluations) if _has_rows(run.evaluations) else None,
                # Files of version 0.1.0 do not tell the classes held.
                with_classes_held(per_user, population),
                measured,
                baselines,
                has_other,
                json.loads(run.facts.read_text()) if run.facts.is_file() else {},
                population,
                _read_fleet(run, experiment, population),
            )
        )
    return records


def _read_fleet(
    run: RunPaths, experiment: Experiment, population: UserStore
) -> fleet_section.FleetRecord | None:
    settings = experiment.fleet_of_run
    if not settings.is_on:
        return None
    return fleet_section.FleetRecord(
        build_fleet_of_run(experiment, population),
        settings.needs,
        _read_csv(run.fleet_tasks),
        _read_csv(run.fleet_rounds),
    )


def warnings_of(records: Sequence[RunRecord]) -> list[str]:
    """Returns warnings of results that are left out, or not compared."""
    left_out = [
        f"The baselines of {record.label} are of another adaptation or seed than its "
        "users' results, and left out; evaluate the run again."
        for record in records
        if record.has_other_baselines
    ]
    return [*left_out, *_differences(records)]


def write_page(
    records: Sequence[RunRecord], title: str, path: pathlib.Path
) -> list[pathlib.Path]:
    """Writes the HTML page, and each of its figures as PNG and SVG beside it.

    The page asks nothing of the network and follows the reader's choice of light or
    dark.

    Args:
      records: the runs.
      title: of the page.
      path: of the page; figures are in the directory of its name without `.html`.

    Returns:
      The page and the figures' directory.
    """
    drawn = draw_figures(records)
    directory = path.with_suffix("")
    for name, (_, figure) in drawn.items():
        for kind in ("png", "svg"):
            figures.save(figure, directory / f"{name}.{kind}")
    page = (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            title=title,
            version=__version__,
            findings=[
                *_own_labels(records),
                *_findings(records),
                *_best_baselines(records),
                *(
                    fleet_section.finding(r.label, r.rounds, r.fleet.tasks)
                    for r in records
                    if r.fleet is not None
                ),
                *warnings_of(records),
            ],
            tables=_tables(records),
            figures=[
                {
                    "name": name,
                    "caption": caption,
                    "svg": figures.inline_svg(figure, name),
                }
                for name, (caption, figure) in drawn.items()
            ],
        )
    )
    with atomic_write(path) as file:
        file.write(page.encode())
    return [path, directory]


def _baselines(records: Sequence[RunRecord]) -> pd.DataFrame | None:
    """Returns the baselines of all runs that have some, under names of their own."""
    measured = [r for r in records if r.baselines is not None]
    if not measured:
        return None
    return combine([r.baselines for r in measured], [r.label for r in measured])


def draw_figures(
    records: Sequence[RunRecord],
) -> dict[str, tuple[str, matplotlib.figure.Figure]]:
    """Returns the page's figures with their captions, by name."""
    per_user = pd.concat([record.per_user for record in records], ignore_index=True)
    # Of all runs, if some were evaluated with more steps than others.
    steps = _common_steps(per_user)
    drawn = {}
    baselines = _baselines(records)
    curves = {r.label: r.curves for r in records if r.curves is not None}
    if curves:
        drawn["learning_curves"] = (
            "Learning curves. Means over users with Student's 95 % intervals (none "
            f"below {FEWEST_USERS} users), before (thin) and after adapting (thick).",
            figures.learning_curves(curves),
        )
    if curves and all("fleet_hours" in rows for rows in curves.values()):
        for column, (name, unit) in fleet_section.SPENT.items():
            scaled = {
                label: rows.assign(**{column: rows[column] / unit})
                for label, rows in curves.items()
            }
            drawn[f"learning_by_{column}"] = (
                f"The same curves over {name}.",
                figures.learning_curves(scaled, column, name),
            )
    drawn["adaptation_curves"] = (
        "Adaptation, step by step, of the model after the last round"
        + (
            "."
            if baselines is None
            else "; thin lines are baselines, of each kind the best."
        ),
        figures.adaptation_curves(per_user, baselines),
    )
    drawn["gain_histogram"] = (
        f"How many users gain how much by {steps} steps. Left of zero: worse off.",
        figures.gain_histogram(per_user[per_user["step"] <= steps]),
    )
    drawn["before_against_after"] = (
        f"Every user before and after {steps} steps. Above the diagonal: better off.",
        figures.before_against_after(per_user[per_user["step"] <= steps]),
    )
    for number, record in enumerate(records):
        histograms, names = _labels_held(record.population)
        drawn[f"users_by_gain_{number}"] = (
            f"{record.label}: who gains"
            + ("." if histograms is None else ", and what labels they hold."),
            figures.users_by_gain(
                record.per_user[record.per_user["step"] <= steps], histograms, names
            ),
        )
        if record.fleet is not None:
            for name, (told, figure) in fleet_section.figures(record.fleet).items():
                drawn[f"{name}_{number}"] = f"{record.label}: {told}", figure
    return drawn


def _findings(records: Sequence[RunRecord]) -> list[str]:
    """Returns sentences on how many users gain and lose, by run and group."""
    sentences = []
    for record in records:
        gains = figures.gain_by_user(record.per_user)
        has_classes = quantity(record.per_user) == "accuracy"
        for group, rows in gains.groupby("users", sort=False):
            gain = rows["gain"]
            mean = f"{100 * gain.mean():+.1f} points of accuracy"
            if not has_classes:
                mean = f"{gain.mean():.3g} of loss less"
            better, worse = (gain > 0).sum(), (gain < 0).sum()
            sentences.append(
                f"{record.label}: of {len(gain)} {group} users, {better} gain by "
                f"adapting, {worse} lose; on average {mean}."
            )
    return sentences


def _own_labels(records: Sequence[RunRecord]) -> list[str]:
    """Returns notes on runs with per-user labels."""
    sentences = []
    for record in records:
        description = record.population.description
        if not description.own_labels:
            continue
        count = description.num_classes or 0
        told = (
            f"{record.label}: every user has {count} labels of its own; before "
            f"adapting one row in {count} is right by chance, whatever the model."
        )
        if description.fresh_labels:
            told += " Training drew them afresh in every round."
        sentences.append(told)
    return sentences


def _best_baselines(records: Sequence[RunRecord]) -> list[str]:
    """Returns sentences on the best baseline of each group."""
    baselines = _baselines(records)
    if baselines is None or not _have_same_users(records) or _differences(records):
        return []
    column = quantity(baselines)
    per_user = pd.concat([record.per_user for record in records])
    sentences = []
    for group in per_user["users"].unique():
        best, reached = (
            _best(rows[rows["users"] == group], column)
            for rows in (baselines, per_user)
        )
        sentences.append(
            f"Of {group} users, {best} as the best baseline, which adapts no trained "
            f"model; {reached} as the best of those that do."
        )
    return sentences


def _differences(records: Sequence[RunRecord]) -> list[str]:
    """Tells in what runs were evaluated differently."""
    found = differences(
        [record.measured for record in records],
        [record.experiment.local.adaptation for record in records],
    )
    if not found:
        return []
    return [
        f"The runs were evaluated differently ({', '.join(found)}), so that they are "
        "not compared; evaluate them together."
    ]


def _best(per_user: pd.DataFrame, column: str) -> str:
    """Names the best algorithm after its last step, with its mean over users."""
    last = per_user.groupby("algorithm")["step"].transform("max")
    means = per_user[per_user["step"] == last].groupby("algorithm")[column].mean()
    if column == "accuracy":
        return f"{means.idxmax()} reaches {100 * means.max():.1f} % of accuracy"
    return f"{means.idxmin()} reaches a loss of {means.min():.3g}"


def _tables(records: Sequence[RunRecord]) -> list[dict]:
    per_user = pd.concat([record.per_user for record in records], ignore_index=True)
    last = _common_steps(per_user)
    baselines = _baselines(records)
    everything = pd.concat([baselines, per_user], ignore_index=True)
    has_classes = quantity(per_user) == "accuracy"
    caption = (
        "Users before (0 steps) and after adapting on their own rows; measured on rows "
        "of theirs that were never used. "
        + " ".join(sentences({r.label: r.measured for r in records}))
    )
    if baselines is not None:
        caption += f" {_BASELINES}{_BY_LABELS if has_classes else ''}{_ALONE}"
    tables = [
        {
            "caption": caption,
            "html": _html(
                report.percent_table(summarize(everything), {0, 1, last}).sort_index(
                    level="users", ascending=False, sort_remaining=False, kind="stable"
                ),
                report.fixed,
                missing="-",
                loss=report.fixed_loss,
            ),
        }
    ]
    by_classes = report.classes_table(everything, {0, 1, last})
    if by_classes is not None:
        caption = f"{report.CLASSES_HELD.capitalize()}."
        tables.append({"caption": caption, "html": _html(by_classes)})
    if has_classes:
        tables.append(
            {
                "caption": "How evenly users fare: 1 is alike (cosine and entropy of "
                "the users' accuracies); percentiles over users.",
                "html": _html(
                    _fairness(summarize(per_user), {0, last}), report.fixed_loss
                ),
            }
        )
    if len(records) > 1 and has_classes and _are_comparable(records):
        compared = report.comparison_table(compare_paired(per_user, last))
        tables.append(
            {
                "caption": f"After {last} steps, the second against the first on the "
                "same users: mean gain in accuracy, percentage points, with its "
                f"{report.INTERVALS}.",
                "html": _html(compared, report.signed, missing="-"),
            }
        )
    return [*tables, *_fleet_tables(records), *_run_tables(records)]


def _fleet_tables(records: Sequence[RunRecord]) -> list[dict]:
    tables = []
    curves = {r.label: r.curves for r in records if r.fleet is not None}
    if curves and all(rows is not None for rows in curves.values()):
        targets = fleet_section.targets_table(
            {label: rows for label, rows in curves.items() if rows is not None}
        )
        if targets is not None:
            caption = (
                "What was spent when a target was first met in an evaluation: 90, 95 "
                "and 99 % of the best that any of these runs reached by adapting."
            )
            html = _html(targets, fleet_section.told, missing="never")
            tables.append({"caption": caption, "html": html})
    for record in records:
        if record.fleet is None:
            continue
        classes = fleet_section.classes_table(record.fleet, record.per_user)
        tables.append(
            {
                "caption": f"{record.label}: device classes of the fleet, what became "
                "of their tasks, what these cost, and what users who had one make of "
                "the model.",
                # Side by side is too wide for a page.
                "html": _html(classes.T, fleet_section.told, missing="-"),
            }
        )
        causes = fleet_section.causes_table(record.fleet.tasks)
        if len(causes):
            caption = f"{record.label}: work that came to nothing, by cause."
            html = _html(causes, fleet_section.told)
            tables.append({"caption": caption, "html": html})
    return tables


def _run_tables(records: Sequence[RunRecord]) -> list[dict]:
    settings = pd.DataFrame(
        {r.label: pd.Series(hparams.told(r.experiment)) for r in records}
    )
    facts = pd.DataFrame({r.label: pd.Series(_flat_facts(r)) for r in records})
    return [
        {
            "caption": "What the runs took and ran on.",
            "html": _html(facts.fillna(""), report.fixed),
        },
        {
            "caption": "Settings.",
            "html": _html(settings.dropna(how="all").fillna("").astype(str)),
        },
    ]


def _fairness(summary: pd.DataFrame, steps) -> pd.DataFrame:
    chosen = summary.loc[summary.index.get_level_values("step").isin(steps)]
    columns = {
        "accuracy_p10": "10th percentile",
        "accuracy_p50": "median",
        "accuracy_p90": "90th percentile",
        "cosine_fairness": "cosine",
        "entropy_fairness": "entropy",
    }
    return chosen[[*columns]].rename(columns=columns)


def _flat_facts(record: RunRecord) -> dict:
    facts = dict(record.facts)
    versions = facts.pop("versions", {})
    names = {"seconds": "time (s)", "peak_memory_mb": "peak memory (MB)"}
    population = record.population
    return {
        **{names.get(name, name): value for name, value in facts.items()},
        "rounds": len(record.rounds),
        "users seen and new": (
            f"{len(population.training_users)} and {len(population.new_users)}"
        ),
        "data": population.description.provenance,
        **versions,
    }


def _have_same_users(records: Sequence[RunRecord]) -> bool:
    # Numbers alone do not make users the same.
    return len({r.population.fingerprint for r in records}) == 1


def _are_comparable(records: Sequence[RunRecord]) -> bool:
    if not _have_same_users(records) or _differences(records):
        return False
    keys = [
        {*r.per_user[["users", "user", "step"]].itertuples(index=False, name=None)}
        for r in records
    ]
    return all(key == keys[0] for key in keys)


def _common_steps(per_user: pd.DataFrame) -> int:
    """Returns the most adaptation steps that every run was evaluated with."""
    return int(per_user.groupby("algorithm")["step"].max().min())


def _labels_held(population: UserStore) -> tuple[np.ndarray | None, list[str]]:
    histograms = heterogeneity.summarize(population).histograms
    if histograms is None:
        return None, []
    names = population.description.class_names or range(histograms.shape[1])
    kind = "label " if population.description.own_labels else ""
    return histograms, [f"{kind}{name}" for name in names]


def _html(
    table: pd.DataFrame,
    number: Callable[[float], str] | None = None,
    missing: str = "",
    **columns: Callable[[float], str],
) -> str:
    formatters = {name: f for name, f in columns.items() if name in table}
    return table.to_html(
        border=0, float_format=number, formatters=formatters, na_rep=missing
    )


def _read_csv(path: pathlib.Path) -> pd.DataFrame:
    try:
        # To the last bit, so that the page rounds as the terminal does.
        return pd.read_csv(path, float_precision="round_trip")
    except (OSError, ValueError) as e:
        raise errors.CheckpointError(
            f"{path} cannot be read ({e}); train or evaluate the run again."
        ) from e


def _has_rows(path: pathlib.Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

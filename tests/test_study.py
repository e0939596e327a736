"""Studies: each run made once; sweeps; the paper's table."""

import collections
import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tff_perfedavg import errors
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.programs.experiment import Experiment
from tff_perfedavg.programs.run_paths import RunPaths
from tff_perfedavg.programs.selection import validation_users

ROOT = pathlib.Path(__file__).parent.parent
BASE = Experiment(
    model="logistic_regression",
    num_users=8,
    num_new_users=4,
    total_rounds=2,
    clients_per_round=3,
    num_local_steps=1,
)
RATE = AdaptationConfig(0.1, 2)


def command(script, *flags):
    answer = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *flags],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture
def study(tff):
    from tff_perfedavg.programs import study

    return study


@pytest.fixture
def trained(study, monkeypatch):
    """Names of the runs that are trained, as they are."""
    names = []
    train_and_save = study.train_and_save

    def watched(experiment, paths):
        names.append(paths.name)
        return train_and_save(experiment, paths)

    monkeypatch.setattr(study, "train_and_save", watched)
    return names


def runs_of(study, *adaptations, **axes):
    return [
        study.Run(settings, experiment, adaptations or [RATE])
        for settings, experiment in study.grid(BASE, axes)
    ]


def files(root):
    """When each evaluation was written, by run and file."""
    return {
        f"{path.parents[1].name}/{path.name}": path.stat().st_mtime_ns
        for path in root.glob("results/*/evaluations/*.csv")
    }


def evaluations(root):
    """What the users of all runs made of their models."""
    frames = map(pd.read_csv, root.glob("results/*/evaluations/*.csv"))
    return pd.concat(frames, ignore_index=True)


def test_a_runs_name_tells_its_settings(study):
    settings = {"method": "exact", "num_local_steps": 4, "inner_learning_rate": 1e-3}
    name = study.run_name(settings)
    assert name == "exact-num_local_steps4-inner_learning_rate0.001"
    assert study.run_name({"store": "mine/people", "seed": 0}) == "mine_people-seed0"


def test_a_grid_has_every_combination_the_last_axis_fastest(study):
    axes = {"method": ["fed_avg", "hessian_free"], "batch_size": [5, 7]}
    found = [*study.grid(BASE, axes)]
    assert [tuple(settings.values()) for settings, _ in found] == [
        ("fed_avg", 5),
        ("fed_avg", 7),
        ("hessian_free", 5),
        ("hessian_free", 7),
    ]
    assert found[0][1] == dataclasses.replace(BASE, algorithm="fed_avg", batch_size=5)
    assert found[3][1] == dataclasses.replace(
        BASE, variant="hessian_free", batch_size=7
    )


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"colour": [1]}, r"axis of the grid is 'colour'; known: .*method"),
        ({"method": []}, "axis method has no values"),
        ({"method": ["sgd"]}, "method is 'sgd'; known: fed_avg"),
        ({"batch_size": [0]}, "batch_size is 0"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(study, axes, message):
    with pytest.raises(errors.ConfigError, match=message):
        [*study.grid(BASE, axes)]


def test_a_study_that_was_stopped_goes_on_where_it_was(
    study, trained, tmp_path, monkeypatch
):
    runs = runs_of(study, method=["fed_avg", "exact"])
    watched = study.train_and_save

    def interrupted(experiment, paths):
        if paths.name == "exact":
            raise errors.Interrupted("Stopped")
        return watched(experiment, paths)

    with monkeypatch.context() as patched:
        patched.setattr(study, "train_and_save", interrupted)
        with pytest.raises(errors.Interrupted):
            study.run_all(runs, BASE, tmp_path)
    done = files(tmp_path)
    assert [*done] == ["fed_avg/rate0.1-steps2.csv"]
    unfinished = study.read_study(tmp_path, runs)
    assert {*unfinished["run"]} == {"fed_avg"}

    study.run_all(runs, BASE, tmp_path)
    assert trained == ["fed_avg", "exact"]
    finished = files(tmp_path)
    assert len(finished) == 2
    assert done.items() < finished.items()
    study.run_all(runs, BASE, tmp_path)
    assert trained == ["fed_avg", "exact"]
    assert files(tmp_path) == finished


def test_further_adaptations_leave_runs_and_other_evaluations_as_they_are(
    study, trained, tmp_path
):
    study.run_all(runs_of(study, method=["exact"]), BASE, tmp_path)
    model = RunPaths(tmp_path, "exact").model
    first, written = files(tmp_path), model.stat().st_mtime_ns
    more = [AdaptationConfig(0.5, 2), AdaptationConfig(0.1, 2, num_rows=3), RATE]
    runs = runs_of(study, *more, method=["exact"])
    study.run_all(runs, BASE, tmp_path)
    assert trained == ["exact"]
    assert model.stat().st_mtime_ns == written
    second = files(tmp_path)
    assert {*second} == {
        *first,
        "exact/rate0.5-steps2.csv",
        "exact/rate0.1-steps2-num_rows3.csv",
    }
    assert first.items() < second.items()
    study.run_all(runs, BASE, tmp_path)
    assert files(tmp_path) == second

    rows = study.read_study(tmp_path)
    sizes = rows.groupby(["adaptation_learning_rate", "num_rows"])[
        "num_adaptation_examples"
    ].max()
    assert sizes[0.1, 3] == 3
    assert sizes[0.1, 0] == sizes[0.5, 0] > 3


def test_an_evaluation_older_than_its_model_is_made_again(study, trained, tmp_path):
    runs = runs_of(study, method=["fed_avg", "exact"])
    study.run_all(runs, BASE, tmp_path)
    before = files(tmp_path)
    later = max(before.values()) + 1
    os.utime(RunPaths(tmp_path, "exact").model, ns=(later, later))
    study.run_all(runs, BASE, tmp_path)
    after = files(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {
        "exact/rate0.1-steps2.csv"
    }
    assert trained == ["fed_avg", "exact"]


def test_a_studys_rows_are_those_of_an_evaluation_behind_the_settings(study, tmp_path):
    from tff_perfedavg.programs import trained_model
    from tff_perfedavg.programs.build import build_model
    from tff_perfedavg.programs.evaluation import evaluate_users
    from tff_perfedavg.programs.population import build_population

    (run,) = runs = runs_of(study, method=["exact"], base_random_seed=[3])
    study.run_all(runs, BASE, tmp_path)
    rows = study.read_study(tmp_path)
    labels = {
        "method": "exact",
        "base_random_seed": 3,
        "run": "exact-base_random_seed3",
        "algorithm": "Per-FedAvg exact",
        "seed": 3,
        "adaptation_learning_rate": 0.1,
        "num_rows": 0,
    }
    assert [*rows.columns[: len(labels)]] == [*labels]
    assert (rows[[*labels]] == labels).all(axis=None)
    weights, experiment = trained_model.load(RunPaths(tmp_path, run.name).model)
    assert experiment == run.experiment
    population = build_population(experiment, tmp_path)
    model = build_model(experiment, population)
    expected = evaluate_users(model, weights, population, RATE)
    pd.testing.assert_frame_equal(
        rows.drop(columns=[*labels]), expected, check_dtype=False
    )


def test_a_study_of_another_base_is_refused_with_the_differences(study, tmp_path):
    study.run_all([], BASE, tmp_path)
    other = dataclasses.replace(BASE, batch_size=3, model="mlp")
    with pytest.raises(
        errors.ConfigError,
        match="has model 'logistic_regression', not 'mlp'; batch_size 10, not 3",
    ):
        study.run_all(runs_of(study, method=["exact"]), other, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


def test_a_damaged_study_is_told_by_its_file(study, tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(errors.DataError, match=r"study\.json is unreadable"):
        study.run_all([], BASE, tmp_path)


def test_two_runs_of_one_name_are_refused_before_any_work(study, tmp_path):
    runs = runs_of(study, method=["exact", "exact"])
    with pytest.raises(errors.ConfigError, match="Two runs of the study have one name"):
        study.run_all(runs, BASE, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_study_without_evaluations_says_so(study, tmp_path):
    with pytest.raises(errors.DataError, match="No evaluations under"):
        study.read_study(tmp_path)


def test_a_sweep_reports_what_validation_users_chose_on_the_others(tmp_path):
    said = command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        "--model=logistic_regression",
        "--num_users=8",
        "--num_new_users=4",
        "--clients_per_round=3",
        "--total_rounds=2",
        "--num_local_steps=1",
        "--grid=method=fed_avg,exact",
        "--grid=outer_learning_rate=0.01,0.1",
        "--choose=outer_learning_rate",
        "--adaptation_learning_rates=0.1,1",
        "--adaptation_steps=2",
        "--adaptation_rows=2,0",
    )
    chosen_columns = ["outer_learning_rate", "adaptation_learning_rate", "step"]
    rows = evaluations(tmp_path)
    # Four runs, two rates and two numbers of rows; eight users, three steps.
    assert len(rows) == 4 * 2 * 2 * 8 * 3
    table = pd.read_csv(
        tmp_path / "sweep.table.csv", index_col=["users", "method", "num_rows"]
    )
    assert len(table) == 2 * 2 * 2
    for (group, *key), cell in rows.groupby(["users", "method", "num_rows"]):
        users = np.sort(cell["user"].unique())
        validating = users[validation_users(users, 0)]
        chooses = cell["user"].isin(validating)
        means = cell[chooses].groupby(chosen_columns)["accuracy"].mean()
        found = table.loc[(group, *key)]
        best = found[chosen_columns]
        assert np.isclose(means[tuple(best)], means.max())
        test = cell[(cell[chosen_columns] == best).all(axis=1) & ~chooses]["accuracy"]
        assert found["num_users"] == len(test) == len(users) - len(validating)
        assert np.isclose(found["accuracy"], test.mean(), atol=1e-5)
        half = scipy.stats.t.ppf(0.975, len(test) - 1) * scipy.stats.sem(test)
        assert np.isclose(found["over_users"], half, atol=1e-5)
    compared = pd.read_csv(tmp_path / "sweep.comparison.csv")
    for _, row in compared.iterrows():
        means = table["accuracy"].loc[row["users"], :, row["num_rows"]]
        assert np.isclose(
            row["difference"], means["exact"] - means["fed_avg"], atol=1e-5
        )
    assert "Test users, with what the validation users chose" in said
    assert "FedAvg + update Per-FedAvg exact" in said


def results(**columns):
    """Rows of a study of two methods, made up."""
    frame = pd.MultiIndex.from_product(
        [["seen", "new"], range(4), ["fed_avg", "exact"], [0, 1]],
        names=["users", "user", "method", "step"],
    ).to_frame(index=False)
    frame["algorithm"] = frame["method"]
    values = np.random.default_rng(0).uniform(size=len(frame))
    labels = {"seed": 0, "num_rows": 0, "adaptation_learning_rate": 0.1}
    return frame.assign(**labels, accuracy=values, loss=1 - values, **columns)


def test_a_method_that_is_chosen_is_not_compared(tff):
    from tff_perfedavg.programs import sweep

    axes = {"method": ["fed_avg", "exact"]}
    test = sweep.choose(results(), axes, ["method"])
    table = sweep.summarize(test, axes, ["method"])
    assert len(table) == 2
    assert {*table["method"]} <= {"fed_avg", "exact"}
    assert sweep.compare_methods(test, axes, ["method"]) is None


def test_a_sweep_of_one_seed_shows_no_interval_over_seeds(tff):
    from tff_perfedavg.programs import sweep

    axes = {"method": ["fed_avg", "exact"]}
    table = sweep.summarize(sweep.choose(results(), axes, []), axes, [])
    assert "NaN" not in sweep.format_table(table)


def test_a_sweep_without_classes_tells_losses(tff):
    from tff_perfedavg.programs import metrics, report, sweep

    axes = {"method": ["fed_avg", "exact"]}
    rows = results().assign(accuracy=np.nan)
    test = sweep.choose(rows, axes, [])
    table = sweep.summarize(test, axes, [])
    assert np.allclose(
        table["loss"].loc["seen"].to_numpy(dtype=float),
        test[test["users"] == "seen"].groupby("method", sort=False)["loss"].mean(),
    )
    compared = sweep.compare_methods(test, axes, [])
    said = report.format_comparison(compared, metrics.quantity(test))
    assert f"{compared['difference'].iloc[0]:+.3g}" in said


def test_the_papers_runs_are_what_its_table_needs_and_no_more(tff):
    from tff_perfedavg.programs.paper_table import Part, paper_runs

    runs = paper_runs(Part(["mnist", "cifar10"]), Experiment(total_rounds=1000), 5)
    assert len({run.name for run in runs}) == len(runs)
    # Two data sets; tau 10 and 4, and 10 with the other distribution; FedAvg once and
    # three variants with two alphas; three seeds.
    assert len(runs) == 2 * 3 * (1 + 3 * 2) * 3
    settings = collections.Counter(
        (e.dataset, e.partition, e.num_local_steps)
        for e in (r.experiment for r in runs)
    )
    assert {key[1:] for key in settings} == {
        ("paper", 10),
        ("paper", 4),
        ("paper_diff_hetero", 10),
    }
    assert {*settings.values()} == {21}
    for run in runs:
        rates = [adaptation.inner_learning_rate for adaptation in run.adaptations]
        if run.experiment.algorithm == "fed_avg":
            assert rates == [0.01, 0.001]
        else:
            assert rates == [run.experiment.inner_learning_rate]
        assert all(a.num_steps == 5 for a in run.adaptations)
        assert run.experiment.total_rounds == 1000
    # A table of the first seed is there before the second's runs begin.
    seeds = [run.experiment.base_random_seed for run in runs]
    assert seeds == sorted(seeds)


def made_up_paper_rows():
    frame = pd.MultiIndex.from_product(
        [
            ["mnist", "fashion_mnist"],
            ["paper", "paper_diff_hetero"],
            [4, 10],
            [0.01, 0.001],
            ["seen", "new"],
            ["FedAvg + update", "Per-FedAvg exact", "Per-FedAvg first-order"],
            [0, 1, 2],
            [0, 1, 2],
            range(3),
        ],
        names=[
            "dataset",
            "partition",
            "num_local_steps",
            "adaptation_learning_rate",
            "users",
            "algorithm",
            "step",
            "seed",
            "user",
        ],
    ).to_frame(index=False)
    rng = np.random.default_rng(0)
    return frame.assign(accuracy=rng.uniform(size=len(frame)), loss=1.0)


def check_latex(text, num_rows, num_columns):
    begun, ended = (
        re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end")
    )
    assert begun == ended == ["tabular"]
    for name in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{name}") == 1
    assert "_" not in text.replace(r"\_", "")
    assert "±" not in text
    assert "%" not in text.replace(r"\%", "")
    assert text.count("$") % 2 == 0
    rows = re.findall(r"^(.*) \\\\$", text, re.MULTILINE)
    assert len(rows) == num_rows + 1
    assert {row.count("&") for row in rows} == {num_columns - 1}


def test_the_papers_table_lays_out_mean_and_both_intervals(tff, tmp_path):
    from tff_perfedavg.programs.paper_table import (
        lay_out,
        summarize_paper,
        write_table,
    )

    rows = made_up_paper_rows()
    summary = summarize_paper(rows, [0, 1])
    assert {*summary.index.unique("step")} == {0, 1}
    table = lay_out(summary, 1)
    assert [*table.columns] == [
        "FedAvg + update",
        "Per-FedAvg first-order",
        "Per-FedAvg exact",
    ]
    setting = ("mnist", "paper", 10, 0.01, "new")
    by_cell = rows.groupby([*table.index.names, "algorithm", "step"])
    cell = by_cell.get_group((*setting, "Per-FedAvg exact", 1))
    halves = []
    for by in ("seed", "user"):
        means = cell.groupby(by)["accuracy"].mean()
        low, high = scipy.stats.t.interval(0.95, 2, means.mean(), means.sem())
        halves.append(50 * (high - low))
    assert table.loc[setting, "Per-FedAvg exact"] == (
        f"{100 * cell['accuracy'].mean():.1f} ± {halves[0]:.1f} (± {halves[1]:.1f})"
    )
    csv, tex = write_table(summary, 1, tmp_path)
    assert len(pd.read_csv(csv)) == len(summary)
    check_latex(tex.read_text(), num_rows=32, num_columns=8)


def test_the_papers_comparison_in_small(tmp_path):
    flags = (
        f"--flagfile={ROOT}/scripts/configs/paper_smoke.flags",
        f"--root_output_dir={tmp_path}",
        "--total_rounds=3",
        "--method=fed_avg,exact",
        "--inner_learning_rate=0.01,0.1",
    )
    said = command("reproduce_paper.py", *flags)
    for words in ("Before adapting", "After one step of adaptation", "± over seeds"):
        assert words in said
    # FedAvg is trained once for both rates; two seeds.
    models = [path.parent.name for path in tmp_path.glob("checkpoints/*/model.npz")]
    of_fed_avg = ["-fed_avg-" in name for name in models]
    assert (len(models), sum(of_fed_avg)) == (6, 2)
    rows = evaluations(tmp_path)
    table = pd.read_csv(tmp_path / "paper_table.csv")
    # Two rates, seen and new, two algorithms, steps 0 and 1.
    assert len(table) == 2 * 2 * 2 * 2
    for _, row in table.iterrows():
        keys = ["adaptation_learning_rate", "users", "algorithm", "step"]
        cell = rows[(rows[keys] == row[keys]).all(axis=1)]
        by_seed_and_user = cell.pivot_table("accuracy", "seed", "user").to_numpy()
        assert np.isclose(row["mean"], by_seed_and_user.mean(), atol=1e-6)
        for name, means in (
            ("over_seeds", by_seed_and_user.mean(1)),
            ("over_users", by_seed_and_user.mean(0)),
        ):
            quantile = scipy.stats.t.ppf(0.975, len(means) - 1)
            half = quantile * scipy.stats.sem(means)
            assert np.isclose(row[name], half, atol=1e-6)
        assert row["num_seeds"] == 2
        assert row["num_users"] == by_seed_and_user.shape[1]
    check_latex((tmp_path / "paper_table.tex").read_text(), num_rows=4, num_columns=7)


def test_the_smoke_setting_gives_the_committed_table(tmp_path):
    flagfile = ROOT / "scripts/configs/paper_smoke.flags"
    command(
        "reproduce_paper.py", f"--flagfile={flagfile}", f"--root_output_dir={tmp_path}"
    )
    found, committed = (
        pd.read_csv(path).set_index(["users", "algorithm", "step"])
        for path in (
            tmp_path / "paper_table.csv",
            ROOT / "docs/results/paper_smoke.csv",
        )
    )
    assert found.index.equals(committed.index)
    for column in ("num_seeds", "num_users", "num_local_steps"):
        assert (found[column] == committed[column]).all()
    # Another processor rounds otherwise, and a row or two may change sides.
    assert (found["mean"] - committed["mean"]).abs().max() < 0.01

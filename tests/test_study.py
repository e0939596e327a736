"""Studies: each run made once; sweeps; the paper's table."""

import collections
import dataclasses
import errno
import itertools
import os
import pathlib
import re
import shutil
import time
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tff_perfedavg import errors
from tff_perfedavg.experiments.evaluation.selection import validation_users
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.sweep_request import OwnSettings
from tff_perfedavg.experiments.study import study_time
from tff_perfedavg.optimization.config import AdaptationConfig

pytestmark = pytest.mark.usefixtures("shared_builds")

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


@pytest.fixture
def command(run):
    """What a command prints, which must end well."""

    def run_well(script, *arguments):
        answer = run(script, *arguments)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    return run_well


@pytest.fixture
def study(tff):
    from tff_perfedavg.experiments.study import study

    return study


@pytest.fixture
def trained(study, monkeypatch):
    """Names of the runs that are trained, as they are."""
    names = []
    train_and_save = study.train_and_save

    def watched(experiment, paths, options):
        names.append(paths.name)
        return train_and_save(experiment, paths, options)

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
        ({"algorithm": ["fed_avg"]}, "grid is 'algorithm'; name methods instead"),
        ({"variant": ["exact"]}, "grid is 'variant'; name methods instead"),
        ({"method": ["sgd"]}, "method is 'sgd'; known: fed_avg"),
        ({"batch_size": [0]}, "batch_size is 0"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(study, axes, message):
    with pytest.raises(errors.ConfigError, match=message):
        [*study.grid(BASE, axes)]


def test_runs_of_a_store_or_a_model_that_has_changed_are_refused(study, tmp_path):
    from tff_perfedavg.data.config import DataConfig
    from tff_perfedavg.data.user_store import UserStore
    from tff_perfedavg.experiments.assemble.prepare import prepare
    from tff_perfedavg.experiments.evaluation import evaluate_runs as evaluation
    from tff_perfedavg.experiments.training.training import train, train_and_save

    store, model = tmp_path / "store", tmp_path / "own.py"
    source = (
        "from tff_perfedavg.models.dense import logistic_regression as of_shape\n"
        "def build(input_shape, num_outputs):\n"
        "    return of_shape(input_shape, num_outputs)\n"
    )
    model.write_text(source)
    prepare(DataConfig.of("digits"), store)
    base = dataclasses.replace(
        BASE,
        store=str(store),
        model=f"{model}:build",
        num_users=None,
        num_new_users=None,
    )
    runs = [study.Run({"method": "exact"}, base, [RATE])]
    study.run_all(runs, base, tmp_path)
    study.run_all(runs, base, tmp_path)
    model.write_text(source + "# another\n")
    with pytest.raises(errors.ConfigError, match=r"own\.py is not what it was"):
        study.run_all(runs, base, tmp_path)
    with pytest.raises(errors.ConfigError, match=r"own\.py is not what it was"):
        evaluation.read_trained([RunPaths(tmp_path, runs[0].name)])
    model.write_text(source)
    # Rows altered in place, which the store's own header does not tell.
    labels = (store / "labels.bin").read_bytes()
    (store / "labels.bin").write_bytes(bytes([labels[0] ^ 1]) + labels[1:])
    paths = RunPaths(tmp_path, runs[0].name)
    for use in (
        lambda: study.run_all(runs, base, tmp_path),
        lambda: evaluation.read_trained([paths]),
        lambda: train_and_save(base, paths),
        lambda: train(base, UserStore.open(store)),
    ):
        with pytest.raises(errors.DataError, match=r"labels\.bin is not what was writ"):
            use()
    shutil.rmtree(store)
    prepare(DataConfig.of("digits", seed=1), store)
    with pytest.raises(errors.ConfigError, match="store is not what it was"):
        study.run_all(runs, base, tmp_path)


def test_a_study_that_was_stopped_goes_on_where_it_was(
    study, trained, tmp_path, monkeypatch
):
    runs = runs_of(study, method=["fed_avg", "exact"])
    watched = study.train_and_save

    def interrupted(experiment, paths, options):
        if paths.name == "exact":
            raise errors.Interrupted("Stopped")
        return watched(experiment, paths, options)

    with monkeypatch.context() as patched:
        patched.setattr(study, "train_and_save", interrupted)
        with pytest.raises(errors.Interrupted):
            study.run_all(runs, BASE, tmp_path)
    done = files(tmp_path)
    assert [*done] == ["fed_avg/rate0.1-steps2.csv"]
    unfinished = study.read_study(tmp_path, runs)
    assert {*unfinished["run"]} == {"fed_avg"}
    one = study_time.seconds(tmp_path)

    study.run_all(runs, BASE, tmp_path)
    assert trained == ["fed_avg", "exact"]
    finished = files(tmp_path)
    assert len(finished) == 2
    assert done.items() < finished.items()
    both = study_time.seconds(tmp_path)
    assert both > one > 0
    study.run_all(runs, BASE, tmp_path)
    assert trained == ["fed_avg", "exact"]
    assert files(tmp_path) == finished
    assert study_time.seconds(tmp_path) == both


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
    from tff_perfedavg.experiments.assemble.build import build_model
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
    from tff_perfedavg.experiments.files import trained_model

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


def test_a_study_of_some_users_measures_these_alike_and_keeps_all_apart(
    study, trained, tmp_path
):
    runs = runs_of(study, method=["exact"])
    study.run_all(runs, BASE, tmp_path)
    few = [run._replace(num_users=3) for run in runs]
    study.run_all(few, BASE, tmp_path)
    assert trained == ["exact"]
    assert {*files(tmp_path)} == {
        "exact/rate0.1-steps2.csv",
        "exact/rate0.1-steps2-users3.csv",
    }
    everyone = study.read_study(tmp_path, runs)
    some = study.read_study(tmp_path, few)
    users = some.groupby("users")["user"].unique()
    assert {name: len(found) for name, found in users.items()} == {"seen": 3, "new": 3}
    same = everyone[everyone["user"].isin(some["user"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, some, rtol=1e-6)


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


def test_a_studys_time_is_that_of_all_its_parts(study, tmp_path, monkeypatch):
    assert study_time.seconds(tmp_path) == 0
    assert study_time.told(tmp_path) == ""

    def fail_slowly():
        with study_time.counted(tmp_path):
            time.sleep(0.06)
            raise ValueError("failed")

    for _ in range(2):
        with pytest.raises(ValueError, match="failed"):
            fail_slowly()
    assert 0.1 <= study_time.seconds(tmp_path) < 10
    assert "took 0.0 minutes, as far as counted (" in study_time.told(tmp_path)
    # What is told of a disk without room is what the work tells.
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched.setattr(study_time, "atomic_write", mock.Mock(side_effect=full))
        with pytest.raises(ValueError, match="failed"):
            fail_slowly()
    (tmp_path / "study.time.json").write_text("{")
    with pytest.raises(errors.DataError, match=r"study\.time\.json is unreadable"):
        study_time.seconds(tmp_path)


def test_two_runs_of_one_name_are_refused_before_any_work(study, tmp_path):
    runs = runs_of(study, method=["exact", "exact"])
    with pytest.raises(errors.ConfigError, match="Two runs of the study have one name"):
        study.run_all(runs, BASE, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_study_without_evaluations_says_so(study, tmp_path):
    with pytest.raises(errors.DataError, match="No evaluations under"):
        study.read_study(tmp_path)


SMALL_SWEEP = (
    "--model=logistic_regression",
    "--num_users=8",
    "--num_new_users=4",
    "--clients_per_round=3",
    "--total_rounds=2",
    "--num_local_steps=1",
)


def test_a_sweep_reports_what_validation_users_chose_on_the_others(command, tmp_path):
    said = command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        *SMALL_SWEEP,
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
    everything = pd.read_csv(tmp_path / "sweep.table.csv")
    of_methods = everything["baseline"] == "-"
    table = everything[of_methods].set_index(["users", "method", "num_rows"])
    assert len(table) == 2 * 2 * 2
    check_baselines(everything[~of_methods], tmp_path)
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
        # Two users of each group report.
        assert np.isnan(found["over_users"])
        assert found["num_runs"] == 2
        assert found["num_diverged"] == 0
    compared = pd.read_csv(tmp_path / "sweep.comparison.csv")
    for _, row in compared.iterrows():
        means = table["accuracy"].loc[row["users"], :, row["num_rows"]]
        assert np.isclose(
            row["difference"], means["exact"] - means["fed_avg"], atol=1e-5
        )
    assert "Test users, with what the validation users chose" in said
    assert "FedAvg + update Per-FedAvg exact" in said
    assert "Training and evaluation took" in said


def check_baselines(table, root):
    """A sweep's baselines are means over its test users, of what FedAvg's chose."""
    files = [*root.glob("results/fed_avg*/baselines/*.csv")]
    # Two outer rates, two numbers of rows.
    assert len(files) == len([*root.glob("results/*/baselines/*.csv")]) == 4
    rows = pd.concat(map(pd.read_csv, files))
    assert (table["method"] == "-").all()
    assert len(table) == 5 * 2 * 2
    keys = ["users", "algorithm", "num_rows"]
    table = table.rename(columns={"baseline": "algorithm"}).set_index(keys)
    for key, cell in rows.groupby(keys):
        found = table.loc[key]
        users = np.sort(cell["user"].unique())
        chooses = cell["user"].isin(users[validation_users(users, 0)])
        by = ["outer_learning_rate", "step"]
        means = cell[chooses].groupby(by)["accuracy"].mean()
        # What takes no steps shows none.
        best = found["outer_learning_rate"], np.nan_to_num(found["step"])
        assert np.isclose(means[best], means.max())
        chosen = (cell[by] == best).all(axis=1)
        test = cell[chosen & ~chooses]["accuracy"]
        assert np.isclose(found["accuracy"], test.mean(), atol=1e-5)
        assert found["num_users"] == len(test)
        assert np.isnan(found["step"]) == (key[1] != "local training")


def test_under_own_labels_each_method_has_the_nearest_rows_of_its_features(
    command, tmp_path
):
    command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        *SMALL_SWEEP,
        "--model=mlp",
        "--partition=iid",
        "--own_labels=3",
        "--grid=method=exact,fed_avg",
        "--grid=outer_learning_rate=0.1,0.5",
        "--choose=outer_learning_rate",
        "--adaptation_steps=1",
    )
    rows = pd.concat(map(pd.read_csv, tmp_path.glob("results/*/baselines/*.csv")))
    # All else is FedAvg's alone, and there once.
    of_method = rows.groupby("method")["baseline"].unique().map(set)
    features = {"features' neighbour", "features' centroid"}
    assert of_method["exact"] == features < of_method["fed_avg"]
    table = pd.read_csv(tmp_path / "sweep.table.csv")
    table = table[table["baseline"] != "-"].set_index(["users", "baseline"])
    assert table.index.is_unique
    for name in ("FedAvg", "Per-FedAvg exact"):
        of_one = rows[rows["algorithm"] == f"{name} + nearest centroid"]
        for group, cell in of_one.groupby("users"):
            users = np.sort(cell["user"].unique())
            chooses = cell["user"].isin(users[validation_users(users, 0)])
            means = cell[chooses].groupby("outer_learning_rate")["accuracy"].mean()
            found = table.loc[(group, f"{name} + nearest centroid")]
            rate = found["outer_learning_rate"]
            assert np.isclose(means[rate], means.max())
            test = cell[~chooses & (cell["outer_learning_rate"] == rate)]["accuracy"]
            assert np.isclose(found["accuracy"], test.mean(), atol=1e-5)
            assert found["num_runs"] == 2
    assert table.loc["seen"].index[0] == "majority class"


METHODS = {"method": ["fed_avg", "exact"]}


def results_of(axes, chosen=(), diverged=(), num_users=4, **columns):
    """Results of a study of two methods, made up.

    Args:
      axes: of the grid, methods among them.
      chosen: which of them users choose.
      diverged: settings of runs that diverged.
      num_users: of each group.
      **columns: in place of those made up.
    """
    from tff_perfedavg.experiments.study.sweep import Results

    outcomes = pd.DataFrame(
        [
            dict(zip(axes, values, strict=True))
            for values in itertools.product(*axes.values())
        ]
    )
    is_of = [(outcomes[[*some]] == pd.Series(some)).all(axis=1) for some in diverged]
    outcomes = outcomes.assign(
        seed=outcomes.get("base_random_seed", 0),
        num_rows=0,
        diverged=np.logical_or.reduce(is_of) if is_of else False,
    )
    users = pd.MultiIndex.from_product(
        [["seen", "new"], range(num_users), [0, 1]], names=["users", "user", "step"]
    ).to_frame(index=False)
    frame = outcomes[~outcomes["diverged"]].drop(columns="diverged")
    frame = frame.merge(users, how="cross")
    values = np.random.default_rng(0).uniform(size=len(frame))
    frame = frame.assign(
        algorithm=frame["method"],
        adaptation_learning_rate=0.1,
        accuracy=values,
        loss=1 - values,
    )
    return Results(axes, chosen, frame.assign(**columns), outcomes)


def test_steps_reported_each_have_choices_of_their_own(tff):
    from tff_perfedavg.experiments.study import sweep

    axes = {**METHODS, "outer_learning_rate": [0.1, 1.0], "base_random_seed": [0, 1]}
    found = results_of(axes, ["outer_learning_rate"], num_users=8)
    found = found._replace(steps=[1, 0])
    test = sweep.choose(found)
    table = sweep.summarize(test, found)
    assert table.index.names == ["users", "method", "num_rows", "step"]
    assert len(table) == 2 * 2 * 2
    for (users, method, rows, step), line in table.iterrows():
        assert rows == 0
        cell = found.per_user
        cell = cell[cell["users"] == users]
        chooses = np.isin(cell["user"], np.flatnonzero(validation_users(range(8), 0)))
        is_of = (cell["method"] == method) & (cell["step"] == step)
        means = cell[chooses & is_of].groupby("outer_learning_rate")["accuracy"].mean()
        assert line["outer_learning_rate"] == means.idxmax()
        of_choice = cell["outer_learning_rate"] == means.idxmax()
        told = cell[~chooses & is_of & of_choice]["accuracy"]
        assert np.isclose(line["accuracy"], told.mean())
        assert line["num_runs"] == 4
    compared = sweep.compare_values(test, found)
    assert {*compared.index.get_level_values("step")} == {0, 1}
    # Steps that are not reported are no choice either.
    only = found._replace(steps=[1])
    assert {*sweep.choose(only)["step"]} == {1}


def test_what_a_half_chose_is_for_the_other_alone_and_stands(tff):
    from tff_perfedavg.experiments.study import sweep

    axes = {**METHODS, "outer_learning_rate": [0.1, 1.0], "base_random_seed": [0, 1]}
    found = results_of(axes, ["outer_learning_rate"], num_users=8)
    found = found._replace(cross_fit=True)
    # On seed 0 the validation users are better off with the lower rate, and the others
    # with the higher; on seed 1 it is the other way round.
    rows = found.per_user
    half = rows["user"].isin(np.flatnonzero(validation_users(range(8), 0)))
    low = rows["outer_learning_rate"] == 0.1
    likes = (half == low) == (rows["seed"] == 0)
    found = found._replace(per_user=rows.assign(accuracy=likes.astype(float)))
    first = found._replace(per_user=found.per_user[rows["seed"] == 0])
    choices = sweep.choices_of(sweep.choose(first), first)
    assert len(choices) == 2 * 2 * 2
    test = sweep.choose(found._replace(choices=choices))
    of_half = test["user"].isin(np.flatnonzero(validation_users(range(8), 0)))
    # What the others chose on seed 0, on every seed.
    assert {*test[of_half]["outer_learning_rate"]} == {1.0}
    assert {*test[~of_half]["outer_learning_rate"]} == {0.1}
    assert len(test) == 2 * 2 * 8 * 2
    table = sweep.summarize(test, found)
    assert {*table["outer_learning_rate"]} == {"0.1, 1"}
    assert "0.1, 1" in sweep.format_table(table)
    # Words are choices, too.
    test = test.assign(outer_learning_rate=np.where(of_half, "adam", "yogi"))
    assert {*sweep.summarize(test, found)["outer_learning_rate"]} == {"adam, yogi"}


def test_a_half_whose_choice_diverged_is_not_compared(tff):
    from tff_perfedavg.experiments.study import sweep

    gone = {"method": "exact", "outer_learning_rate": 1.0, "base_random_seed": 1}
    found = results_of(AXES, ["outer_learning_rate"], [gone], num_users=8)
    found = found._replace(cross_fit=True)
    choices = pd.DataFrame(
        [
            (users, method, 0, 1.0 if (method, half) == ("exact", 1) else 0.1, half)
            for users in ("seen", "new")
            for method in METHODS["method"]
            for half in (0, 1)
        ],
        columns=["users", "method", "num_rows", "outer_learning_rate", "chosen_by"],
    )
    found = found._replace(choices=choices)
    test = sweep.choose(found)
    assert sweep.compare_values(test, found) is None
    assert sweep.not_compared(test, found) == ["exact"]


def test_a_fold_without_test_users_is_no_divergence(tff):
    from tff_perfedavg.experiments.study import sweep

    axes = {**METHODS, "fold": ["1/2", "2/2"]}
    found = results_of(axes, num_users=8)
    rows = found.per_user
    of_fold = rows["user"] % 2 == (rows["fold"] == "1/2")
    found = found._replace(per_user=rows[of_fold | (rows["users"] == "seen")])
    test = sweep.choose(found)
    # Without one fold's new users among those who report.
    test = test[(test["users"] == "seen") | (test["fold"] == "1/2")]
    assert sweep.not_compared(test, found) == []
    assert len(sweep.compare_values(test, found)) == 2
    told = sweep.tell_tried(found, [0])
    assert "fed_avg 0 of 2, exact 0 of 2" in told


def test_a_method_that_is_chosen_is_not_compared(tff):
    from tff_perfedavg.experiments.study import sweep

    found = results_of(METHODS, ["method"])
    test = sweep.choose(found)
    table = sweep.summarize(test, found)
    assert len(table) == 2
    assert {*table["method"]} <= {"fed_avg", "exact"}
    assert sweep.compare_values(test, found) is None
    assert sweep.not_compared(test, found) == []


def test_a_sweep_of_one_seed_shows_no_interval_over_seeds(tff):
    from tff_perfedavg.experiments.study import sweep

    found = results_of(METHODS)
    table = sweep.summarize(sweep.choose(found), found)
    said = sweep.format_table(table)
    assert "NaN" not in said
    assert "over_" not in said
    assert "diverged" not in said


def test_a_sweep_without_classes_tells_losses(tff):
    from tff_perfedavg.experiments.evaluation import metrics
    from tff_perfedavg.experiments.report import tables as report
    from tff_perfedavg.experiments.study import sweep

    found = results_of(METHODS, accuracy=np.nan)
    test = sweep.choose(found)
    table = sweep.summarize(test, found)
    assert np.allclose(
        table["loss"].loc["seen"].to_numpy(dtype=float),
        test[test["users"] == "seen"].groupby("method", sort=False)["loss"].mean(),
    )
    compared = sweep.compare_values(test, found)
    said = report.format_comparison(compared, metrics.quantity(test))
    assert f"{compared['difference'].iloc[0]:+.3g}" in said


def test_a_sweep_corrects_p_values_for_all_comparisons_of_its_table(tff):
    from tff_perfedavg.experiments.evaluation.significance import holm
    from tff_perfedavg.experiments.report import tables as report
    from tff_perfedavg.experiments.study import sweep

    found = results_of(METHODS)
    compared = sweep.compare_values(sweep.choose(found), found)
    assert len(compared) > 1
    np.testing.assert_array_equal(compared["p_holm"], holm(compared["p_value"]))
    said = report.format_comparison(compared).splitlines()
    assert said[0].split()[-1] == "p" or "p" in said[1].split()
    assert said[-1].split()[-1] == f"{compared['p_holm'].iloc[-1]:.2g}"


AXES = {**METHODS, "outer_learning_rate": [0.1, 1.0], "base_random_seed": [0, 1, 2]}


def test_what_a_seed_diverged_with_is_not_chosen_while_there_is_another(tff):
    from tff_perfedavg.experiments.study import sweep

    # The better one, of which one run of three is not there.
    found = results_of(
        AXES,
        ["outer_learning_rate"],
        [{"method": "exact", "outer_learning_rate": 1.0, "base_random_seed": 1}],
    )
    better = found.per_user["outer_learning_rate"] == 1.0
    accuracy = found.per_user["accuracy"].where(better, 0.0)
    found = found._replace(per_user=found.per_user.assign(accuracy=accuracy))
    test = sweep.choose(found)
    chosen = test.groupby("method")["outer_learning_rate"].unique()
    assert [*chosen["exact"]] == [0.1]
    assert [*chosen["fed_avg"]] == [1.0]
    table = sweep.summarize(test, found)
    assert (table["num_seeds"] == 3).all()
    assert [*table["num_diverged"].loc["seen"]] == [0, 1]
    assert (table["num_runs"] == 6).all()
    assert len(re.findall(r" 0 of 6$| 1 of 6$", sweep.format_table(table), re.M)) == 4
    # All seeds of both are there.
    assert len(sweep.compare_values(test, found)) == 2
    assert sweep.not_compared(test, found) == []


def test_where_all_diverged_once_the_fewest_are_chosen_and_not_compared(tff):
    from tff_perfedavg.experiments.study import sweep

    diverged = [
        {"method": "exact", "outer_learning_rate": rate, "base_random_seed": seed}
        for rate, seed in ((0.1, 0), (1.0, 0), (1.0, 2))
    ]
    found = results_of(AXES, ["outer_learning_rate"], diverged)
    test = sweep.choose(found)
    exact = test[test["method"] == "exact"]
    assert {*exact["outer_learning_rate"]} == {0.1}
    assert {*exact["seed"]} == {1, 2}
    table = sweep.summarize(test, found)
    assert [*table["num_seeds"].loc["seen"]] == [3, 2]
    assert [*table["num_diverged"].loc["seen"]] == [0, 3]
    assert sweep.compare_values(test, found) is None
    assert sweep.not_compared(test, found) == ["exact"]


def test_what_one_group_lacks_is_compared_in_no_group(tff):
    from tff_perfedavg.experiments.study import sweep

    gone = {"method": "exact", "outer_learning_rate": 1.0, "base_random_seed": 1}
    found = results_of(AXES, ["outer_learning_rate"], [gone])
    # As seeds that choose leave it: seen users have a rate of which a seed diverged.
    rates = {("seen", "exact"): 1.0}
    choices = pd.DataFrame(
        [
            (users, method, 0, rates.get((users, method), 0.1))
            for users in ("seen", "new")
            for method in METHODS["method"]
        ],
        columns=["users", "method", "num_rows", "outer_learning_rate"],
    )
    found = found._replace(choices=choices)
    test = sweep.choose(found)
    table = sweep.summarize(test, found)
    assert [*table["num_seeds"].loc["seen"]] == [3, 2]
    assert [*table["num_seeds"].loc["new"]] == [3, 3]
    assert sweep.compare_values(test, found) is None
    assert sweep.not_compared(test, found) == ["exact"]


@pytest.mark.parametrize("everything", [False, True])
def test_a_row_of_which_all_runs_diverged_says_so(tff, everything):
    from tff_perfedavg.experiments.study import sweep

    gone = METHODS["method"] if everything else ["exact"]
    axes = {**METHODS, "base_random_seed": [0, 1]}
    found = results_of(axes, (), [{"method": method} for method in gone])
    test = sweep.choose(found)
    table = sweep.summarize(test, found)
    said = sweep.format_table(table)
    assert len(re.findall(r"2 of 2$", said, re.MULTILINE)) == 2
    assert table["accuracy"].isna().sum() == 2
    assert len(table) == (2 if everything else 4)
    assert sweep.compare_values(test, found) is None
    assert sweep.not_compared(test, found) == sorted(gone)


def sweep_of(tmp_path, rates, chosen, **axes):
    """Makes a sweep of logistic regressions and returns its runs and its results."""
    from tff_perfedavg.experiments.study import study, sweep

    runs = sweep.sweep_runs(BASE, axes, sweep.Adapting(rates, 1))
    study.run_all(runs, BASE, tmp_path)
    return runs, sweep.read_results(tmp_path, runs, axes, chosen, rates)


INNER_RATES = {**METHODS, "inner_learning_rate": [0.01, 0.1]}


@pytest.mark.parametrize("rates", [[], [0.05, 0.5]])
def test_fed_avg_is_trained_once_for_all_inner_rates(trained, tmp_path, rates):
    from tff_perfedavg.experiments.study import sweep

    _, found = sweep_of(tmp_path, rates, (), **INNER_RATES)
    assert trained == [
        "fed_avg",
        "exact-inner_learning_rate0.01",
        "exact-inner_learning_rate0.1",
    ]
    # Every row of the table there is all the same, FedAvg adapted at the rate.
    adapted = found.per_user.groupby(["method", "inner_learning_rate"])[
        "adaptation_learning_rate"
    ].unique()
    assert len(adapted) == 4
    for (_, inner), values in adapted.items():
        assert [*values] == (rates or [inner])
    test = sweep.choose(found)
    table = sweep.summarize(test, found)
    assert [*table.index.droplevel("num_rows")] == [
        (users, method, rate)
        for users in ("seen", "new")
        for method in ("fed_avg", "exact")
        for rate in (0.01, 0.1)
    ]
    assert (table["num_runs"] == 1).all()
    assert len(sweep.compare_values(test, found)) == 2 * 2


@pytest.mark.slow
def test_a_method_is_trained_once_for_all_values_of_what_it_does_not_use(
    trained, tmp_path
):
    from tff_perfedavg.experiments.study import sweep

    axes = {
        "method": ["fed_avg", "first_order", "exact"],
        "hessian_batch": ["own", "support"],
    }
    _, found = sweep_of(tmp_path, [], (), **axes)
    assert trained == ["fed_avg", "first_order", "exact-own", "exact-support"]
    table = sweep.summarize(sweep.choose(found), found)
    assert [*table.loc["seen"].index.droplevel("num_rows")] == [
        *itertools.product(*axes.values())
    ]
    assert (table["num_runs"] == 1).all()
    means = table["accuracy"].loc["seen"]
    assert means["fed_avg", "own", 0] == means["fed_avg", "support", 0]
    compared = sweep.compare_values(sweep.choose(found), found, "hessian_batch")
    seen = compared.xs("seen", level="users").droplevel("num_rows")
    first, second = "hessian_batch own", "hessian_batch support"
    assert {*seen.index} == {(m, first, second) for m in axes["method"]}
    gain = seen["difference"]["exact", first, second]
    assert np.isclose(gain, means["exact", "support", 0] - means["exact", "own", 0])
    assert seen["difference"]["fed_avg", first, second] == 0


def test_methods_have_settings_of_their_own_in_one_comparison(command, run, tmp_path):
    command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        *SMALL_SWEEP,
        "--grid=method=fed_avg,exact",
        "--of_method=fed_avg:outer_learning_rate=0.2,inner_learning_rate=0.7",
        "--of_method=exact:total_rounds=1,inner_learning_rate=0.3",
        "--adaptation_steps=1",
        "--nobaselines",
    )
    found = {}
    for method in ("fed_avg", "exact"):
        _, experiment = trained_model.load(RunPaths(tmp_path, method).model)
        local = experiment.local
        found[method] = (experiment.total_rounds, local.outer_learning_rate)
    assert found == {"fed_avg": (2, 0.2), "exact": (1, BASE.local.outer_learning_rate)}
    rates = evaluations(tmp_path).groupby("method")["adaptation_learning_rate"]
    assert rates.unique().map(list).to_dict() == {"fed_avg": [0.7], "exact": [0.3]}
    assert len(pd.read_csv(tmp_path / "sweep.comparison.csv")) == 2
    # Runs that are there are not those of other settings.
    answer = run(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        *SMALL_SWEEP,
        "--grid=method=fed_avg,exact",
        "--adaptation_steps=1",
        "--nobaselines",
    )
    assert answer.returncode == 1
    assert "The run fed_avg under" in answer.stderr
    assert "has inner_learning_rate 0.7, not" in answer.stderr


def test_a_study_with_a_run_that_diverged_goes_on(command, run, tmp_path):
    given = (
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        *SMALL_SWEEP,
        # Its layers' product grows for a round or two before it is no longer finite.
        "--model=mlp",
        "--total_rounds=6",
        "--grid=method=fed_avg",
        "--grid=outer_learning_rate=0.1,1e6",
        "--adaptation_steps=1",
        "--nobaselines",
    )
    command(*given)
    name = "fed_avg-outer_learning_rate1e+06"
    _, ended = trained_model.load(RunPaths(tmp_path, name).model)
    assert 0 < ended.total_rounds < 6
    table = (tmp_path / "sweep.table.csv").read_bytes()
    command(*given)
    assert (tmp_path / "sweep.table.csv").read_bytes() == table
    # Other settings are still told from those of a run that diverged.
    answer = run(*given, "--total_rounds=7")
    assert answer.returncode == 1
    assert "total_rounds" in answer.stderr


def test_a_rehearsal_is_the_study_in_small_beside_it(command, tmp_path):
    said = command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        "--rehearse",
        "--partition=iid",
        "--num_users=30",
        "--num_new_users=10",
        "--model=logistic_regression",
        "--num_local_steps=1",
        "--total_rounds=500",
        "--grid=method=fed_avg,first_order",
        "--grid=outer_learning_rate=0.01,0.1",
        "--grid=base_random_seed=3,4,5",
        "--choose=outer_learning_rate",
        "--choosing_seeds=4",
        "--of_method=fed_avg:total_rounds=1000",
        "--num_evaluation_users=20",
        "--adaptation_steps=1",
        "--report_steps=0,1",
        "--nobaselines",
    )
    assert "rehearsal/sweep.table.csv" in said
    assert [path.name for path in tmp_path.iterdir()] == ["rehearsal"]
    root = tmp_path / "rehearsal"
    models = [trained_model.load(p)[1] for p in root.glob("checkpoints/*/model.npz")]
    settings = [
        (
            one.local.method,
            one.total_rounds,
            one.local.outer_learning_rate,
            one.base_random_seed,
        )
        for one in models
    ]
    assert sorted(settings) == [("fed_avg", 2, 0.01, 4), ("first_order", 2, 0.01, 4)]
    users = evaluations(root).groupby(["method", "users"])["user"].nunique()
    assert set(users) == {8}
    assert len(users) == 4


def test_a_methods_own_settings_are_those_of_its_adaptation_too(tff):
    from tff_perfedavg.experiments.study import sweep

    axes = {"method": ["p_fed_me", "anil"]}
    adapting = sweep.Adapting([0.01, 0.02], 3, [0, 2])
    runs = sweep.sweep_runs(BASE, axes, adapting)
    own = [
        OwnSettings("p_fed_me", {}, {"moreau_pull": 5.0}),
        OwnSettings("anil", {}, {"head_tensors": 1}),
    ]
    with_own = sweep.sweep_runs(BASE, axes, adapting, own)
    changed = dict(zip(axes["method"], with_own, strict=True))
    for method, before in zip(axes["method"], runs, strict=True):
        after = changed[method]
        assert [
            (a.inner_learning_rate, a.num_steps, a.num_rows) for a in after.adaptations
        ] == [
            (a.inner_learning_rate, a.num_steps, a.num_rows) for a in before.adaptations
        ]
    assert {a.pull for a in changed["p_fed_me"].adaptations} == {5.0}
    assert {a.head_tensors for a in changed["anil"].adaptations} == {1}


def test_a_method_has_settings_of_its_own_at_a_value_of_another_axis(tff):
    from tff_perfedavg.experiments.study import sweep

    axes = {
        "method": ["fed_avg", "exact"],
        "inner_steps": [1, 3],
        "base_random_seed": [4, 5],
    }
    own = [
        OwnSettings("exact", {}, {"inner_learning_rate": 0.3}),
        OwnSettings("exact", {"inner_steps": 3}, {"inner_learning_rate": 0.2}),
        # An axis that a method does not use still sets its runs apart.
        OwnSettings("fed_avg", {"inner_steps": 1}, {"num_local_steps": 7}),
        OwnSettings("fed_avg", {"inner_steps": 3}, {"num_local_steps": 9}),
    ]
    adapting = sweep.Adapting([0.01], 3)
    runs = sweep.sweep_runs(BASE, axes, adapting, own)
    assert len({run.name for run in runs}) == len(runs) == 8
    found = {
        tuple(run.settings.values()): (
            run.experiment.local.num_local_steps,
            run.experiment.local.inner_learning_rate,
        )
        for run in runs
    }
    tau, rate = BASE.local.num_local_steps, BASE.local.inner_learning_rate
    for seed in (4, 5):
        assert found["exact", 1, seed] == (tau, 0.3)
        assert found["exact", 3, seed] == (tau, 0.2)
        assert found["fed_avg", 1, seed] == (7, rate)
        assert found["fed_avg", 3, seed] == (9, rate)
    # Without them FedAvg has one run for all values.
    runs = sweep.sweep_runs(BASE, axes, adapting, own[:2])
    assert [r.name for r in runs if r.settings["method"] == "fed_avg"] == [
        "fed_avg-base_random_seed4",
        "fed_avg-base_random_seed5",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fed_prox:batch_size=3", "'fed_prox' is no method of the grid"),
        ("exact,batch_size=3:total_rounds=9", "but 3 is no batch_size of the grid"),
        ("exact,total_rounds=3:batch_size=2", "'total_rounds' is no other axis"),
        ("exact,batch_size=few:total_rounds=9", "of_method has 'exact,batch_size=few"),
        ("exact:batch_size=3", "but batch_size is an axis of the grid"),
        ("exact:colour=3", "is 'colour'; known:"),
        ("exact:total_rounds=many", "of_method has 'exact:total_rounds=many'"),
        ("exact:total_rounds=0", "total_rounds is 0"),
        ("exact:num_users=8", "methods are compared on the same users; give num_users"),
    ],
)
def test_settings_of_a_method_that_cannot_be_are_refused(run, tmp_path, text, message):
    answer = run(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        "--grid=method=fed_avg,exact",
        "--grid=batch_size=2,4",
        f"--of_method={text}",
    )
    assert answer.returncode == 1
    assert message in answer.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_sweep_tells_users_of_few_and_of_many_classes_apart(command, tmp_path):
    said = command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        "--model=logistic_regression",
        "--total_rounds=2",
        "--num_local_steps=1",
        "--grid=method=fed_avg",
        "--adaptation_steps=1",
        "--report_steps=0,1",
        "--cross_fit",
    )
    assert "Accuracy % by the number of classes that users hold" in said
    table = pd.read_csv(tmp_path / "sweep.classes_held.csv")
    # By the paper's rule half hold five classes, the others one or two: all of a / 2
    # rows, which may fall to another class.
    held = table.groupby("users")["num_classes_held"].unique().map(sorted).to_dict()
    assert held["seen"][-1] == 5
    assert set(held["seen"]) <= {1, 2, 5}
    assert {*table["baseline"]} > {"-", "majority class", "FedAvg + label shares"}
    # By hand: FedAvg before adapting, users of five classes.
    rows = evaluations(tmp_path)
    mine = rows[
        (rows["users"] == "seen") & (rows["method"] == "fed_avg") & (rows["step"] == 0)
    ]
    mine = mine[
        mine["adaptation_learning_rate"] == mine["adaptation_learning_rate"].min()
    ]
    of_five = mine[mine["user"] < 10]
    found = table[
        (table["users"] == "seen")
        & (table["method"] == "fed_avg")
        & (table["step"] == 0)
        & (table["num_classes_held"] == 5)
    ]
    assert np.isclose(found["mean"].item(), of_five["accuracy"].mean(), atol=1e-5)
    assert found["num_users"].item() == of_five["user"].nunique()
    # Printed as it is written, whatever the order of rows.
    printed = said.split("classes that users hold")[1].splitlines()
    by = [*table.columns[: table.columns.get_loc("num_classes_held")]]
    for _, of_key in table.groupby(by, sort=False):
        cells = [f"{100 * value:.1f}" for value in of_key["mean"]]
        shown = [[word for word in line.split() if word != "-"] for line in printed]
        assert any(line[-len(cells) :] == cells for line in shown)


def test_ranges_of_classes_are_of_the_users_of_all_runs(tff):
    from tff_perfedavg.experiments.evaluation.classes_held import COLUMN, with_ranges

    rows = pd.DataFrame(
        {
            "users": "seen",
            "user": [0, 1, 0, 1],
            COLUMN: [2, 2, 5, 5],
            "run": list("aabb"),
        }
    )
    assert [*with_ranges(rows)[COLUMN]] == ["2", "2", "5", "5"]


@pytest.mark.slow
def test_over_folds_every_user_is_reported_as_new_once_a_seed(command, tmp_path):
    said = command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        "--model=logistic_regression",
        "--partition=iid",
        "--num_users=14",
        "--clients_per_round=3",
        "--total_rounds=2",
        "--num_local_steps=1",
        "--grid=method=fed_avg,exact",
        "--grid=fold=1/2,2/2",
        "--grid=inner_learning_rate=0.01,1",
        "--choose=inner_learning_rate",
        "--adaptation_steps=1",
        "--cross_fit",
        "--nobaselines",
    )
    table = pd.read_csv(tmp_path / "sweep.table.csv")
    assert "fold" not in table
    methods = table[table["users"] == "new"]
    # Seven and seven: enough for an interval, where each half alone has none.
    assert (methods["over_users"] > 0).all()
    rows = evaluations(tmp_path)
    new = rows[rows["users"] == "new"]
    assert new.groupby("fold")["user"].nunique().to_dict() == {"1/2": 7, "2/2": 7}
    assert new["user"].nunique() == 14
    # What the two halves chose, by hand, for the method whose training has the rate.
    users = np.arange(14)
    half = users[validation_users(users, 0)]
    expected = []
    of_exact = new[new["method"] == "exact"]
    for choosing in (half, np.setdiff1d(users, half)):
        by = ["inner_learning_rate", "adaptation_learning_rate", "step"]
        chosen = of_exact[of_exact["user"].isin(choosing)]
        best = chosen.groupby(by, sort=False)["accuracy"].mean().idxmax()
        others = of_exact[~of_exact["user"].isin(choosing)]
        expected.append(others[(others[by] == best).all(axis=1)]["accuracy"])
    found = methods.set_index("method")["accuracy"]["exact"]
    assert np.isclose(found, pd.concat(expected).mean(), atol=1e-6)
    assert "accuracy %" in said


def test_baselines_stand_on_the_users_that_a_sweep_measures(command, tmp_path):
    command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        *SMALL_SWEEP,
        "--grid=method=fed_avg",
        "--num_evaluation_users=3",
        "--adaptation_steps=1",
    )
    table = pd.read_csv(tmp_path / "sweep.table.csv")
    assert len(table) == 2 * 6
    # Of three users two choose, and one is left to report.
    (path,) = tmp_path.glob("results/*/baselines/*.csv")
    baselines = pd.read_csv(path)
    measured = evaluations(tmp_path)
    assert {*baselines["user"]} == {*measured["user"]}
    for group, rows in measured.groupby("users"):
        users = np.sort(rows["user"].unique())
        (left,) = users[~validation_users(users, 0)]
        of_user = baselines[(baselines["user"] == left) & (baselines["step"] == 0)]
        found = table[table["users"] == group].set_index("baseline")["accuracy"]
        for name in ("majority class", "local training to convergence"):
            of_name = of_user[of_user["algorithm"] == name]
            assert np.isclose(found[name], of_name["accuracy"].item())


def test_choices_at_an_edge_of_what_was_tried_are_told(tff):
    from tff_perfedavg.experiments.study import sweep, sweep_edges

    axes = {"method": ["fed_avg", "exact"], "outer_learning_rate": [0.1, 0.01, 1.0]}
    adapted = {"num_rows": 0, "adaptation_learning_rate": [0.1, 0.3, 1.0]}
    tried = [pd.DataFrame({"method": name, **adapted}) for name in axes["method"]]
    per_user = pd.concat(tried)
    results = sweep.Results(
        axes, ["outer_learning_rate"], per_user, per_user, steps=[0, 1, 5]
    )
    columns = ["users", "method", "step", "outer_learning_rate"]
    rows = [
        ("seen", "fed_avg", 0, 0.1, 0.1),
        ("seen", "fed_avg", 1, 0.1, 0.3),
        ("seen", "fed_avg", 5, 1.0, 0.3),
        ("new", "fed_avg", 1, 1.0, 0.3),
        ("seen", "exact", 1, 0.1, 0.1),
        # Each half of the users has what the other chose.
        ("seen", "exact", 5, 0.1, 0.1),
        ("seen", "exact", 5, 0.1, 0.3),
        ("new", "exact", 5, 0.01, 0.3),
    ]
    test = pd.DataFrame(rows, columns=[*columns, "adaptation_learning_rate"])
    assert sweep_edges.at_edges(test, results) == [
        "fed_avg outer_learning_rate=1, the highest tried (seen, 5 steps; new, 1 step)",
        "exact outer_learning_rate=0.01, the lowest tried (new, 5 steps)",
        "exact adaptation_learning_rate=0.1, the lowest tried (seen, 1, 5 steps)",
    ]
    inside = test[(test["step"] == 1) & (test["users"] == "seen")].iloc[:1]
    assert sweep_edges.at_edges(inside, results) == []


def chosen_by_hand(rows, names):
    """What the validation users of some seeds chose, of one group and method."""
    users = np.sort(rows["user"].unique())
    validating = rows["user"].isin(users[validation_users(users, 0)])
    by = [*names, "adaptation_learning_rate", "step"]
    means = rows[validating].groupby(by, sort=False)["accuracy"].mean()
    return means[means == means.max()].index[0][: len(names)]


@pytest.mark.slow
def test_seeds_that_choose_leave_the_others_what_they_chose(command, tmp_path):
    said = command(
        "sweep.py",
        f"--root_output_dir={tmp_path}",
        *SMALL_SWEEP,
        "--grid=method=fed_avg",
        "--grid=outer_learning_rate=0.001,0.1,1e38",
        "--grid=base_random_seed=3,4",
        "--choose=outer_learning_rate",
        "--choosing_seeds=3",
        "--adaptation_steps=1",
        "--nobaselines",
    )
    rows = evaluations(tmp_path)
    table = pd.read_csv(tmp_path / "sweep.table.csv")
    assert (table["num_seeds"] == 2).all()
    later = {}
    for _, row in table.iterrows():
        of_row = rows[
            (rows["users"] == row["users"]) & (rows["method"] == row["method"])
        ]
        first = of_row[of_row["seed"] == 3]
        assert first["outer_learning_rate"].nunique() == 2
        best = chosen_by_hand(first, ["outer_learning_rate"])
        assert row["outer_learning_rate"] == best[0]
        later.setdefault(row["method"], set()).add(best[0])
    for method, rates in later.items():
        of_other = rows[(rows["seed"] == 4) & (rows["method"] == method)]
        assert {*of_other["outer_learning_rate"]} == rates
    assert "runs of seed 3, of which diverged: fed_avg 1 of 3." in said


def test_where_users_choose_the_inner_rate_fed_avg_has_none(trained, tmp_path):
    from tff_perfedavg.experiments.study import sweep

    _, found = sweep_of(tmp_path, [], ["inner_learning_rate"], **INNER_RATES)
    test = sweep.choose(found)
    table = sweep.summarize(test, found)
    of_fed_avg, of_exact = (
        table.xs(method, level="method") for method in ("fed_avg", "exact")
    )
    assert of_fed_avg["inner_learning_rate"].isna().all()
    assert {*of_fed_avg["adaptation_learning_rate"]} <= {0.01, 0.1}
    assert (
        of_exact["inner_learning_rate"] == of_exact["adaptation_learning_rate"]
    ).all()
    # One of FedAvg, two of the other.
    assert [*of_fed_avg["num_runs"]] == [1, 1]
    assert [*of_exact["num_runs"]] == [2, 2]
    assert len(sweep.compare_values(test, found)) == 2


def test_a_study_goes_on_past_a_run_that_diverges_and_trains_it_once(
    trained, tmp_path, capsys
):
    from tff_perfedavg.experiments.study import study, sweep

    axes = {**METHODS, "outer_learning_rate": [1e38, 0.01]}
    runs, found = sweep_of(tmp_path, [0.1], ["outer_learning_rate"], **axes)
    assert trained == [run.name for run in runs]
    said = capsys.readouterr().out
    assert "fed_avg-outer_learning_rate1e+38 diverged: " in said
    assert [*found.outcomes["diverged"]] == [True, False, True, False]
    assert {*found.per_user["run"]} == {runs[1].name, runs[3].name}
    table = sweep.summarize(sweep.choose(found), found)
    assert (table["outer_learning_rate"] == 0.01).all()
    assert (table["num_diverged"] == 1).all()
    assert (table["num_runs"] == 2).all()
    everything = study.read_study(tmp_path)
    assert {*everything["run"]} == {runs[1].name, runs[3].name}
    assert study.read_diverged(tmp_path) == [
        run.experiment
        for run in sorted(runs, key=lambda run: run.name)
        if run.experiment.local.outer_learning_rate > 1
    ]
    study.run_all(runs, BASE, tmp_path)
    assert len(trained) == len(runs)


def test_a_study_of_which_all_runs_diverge_says_so(tmp_path, tff):
    from tff_perfedavg.experiments.study import sweep

    axes = {**METHODS, "outer_learning_rate": [1e38]}
    _, found = sweep_of(tmp_path, [0.1], [], **axes)
    table = sweep.summarize(sweep.choose(found), found)
    assert len(re.findall(r"1 of 1$", sweep.format_table(table), re.MULTILINE)) == 2


def test_the_papers_runs_are_what_its_table_needs_and_no_more(tff):
    from tff_perfedavg.experiments.study.paper_table import Part, paper_runs

    runs = paper_runs(Part(["mnist", "cifar10"]), Experiment(total_rounds=1000), 5)
    assert len({run.name for run in runs}) == len(runs)
    # Two data sets; tau 10 and 4, and 10 with the other distribution; FedAvg once and
    # three variants with two alphas; three seeds.
    assert len(runs) == 2 * 3 * (1 + 3 * 2) * 3
    settings = collections.Counter(
        (e.data.dataset, e.data.partition, e.local.num_local_steps)
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
        if run.experiment.local.algorithm == "fed_avg":
            assert rates == [0.01, 0.001]
        else:
            assert rates == [run.experiment.local.inner_learning_rate]
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
            range(6),
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
    from tff_perfedavg.experiments.study.paper_table import (
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
        freedom = len(means) - 1
        low, high = scipy.stats.t.interval(0.95, freedom, means.mean(), means.sem())
        halves.append(50 * (high - low))
    assert table.loc[setting, "Per-FedAvg exact"] == (
        f"{100 * cell['accuracy'].mean():.1f} ± {halves[0]:.1f} (± {halves[1]:.1f})"
    )
    assert (summary["num_diverged"] == 0).all()
    csv, tex = write_table(summary, 1, tmp_path)
    assert len(pd.read_csv(csv)) == len(summary)
    check_latex(tex.read_text(), num_rows=32, num_columns=8)


def test_the_papers_table_counts_runs_that_diverged(tff):
    from tff_perfedavg.experiments.study.paper_table import lay_out, summarize_paper

    rows = made_up_paper_rows()
    of_cell = {
        "dataset": "mnist",
        "partition": "paper",
        "num_local_steps": 10,
        "adaptation_learning_rate": 0.01,
    }
    setting = (rows[[*of_cell]] == of_cell).all(axis=1)
    exact = rows["algorithm"] == "Per-FedAvg exact"
    fed_avg = rows["algorithm"] == "FedAvg + update"
    # Of exact one seed of three is left, of FedAvg, with whatever alpha, none.
    gone = (setting & exact & (rows["seed"] != 1)) | (
        fed_avg
        & (rows["dataset"] == "mnist")
        & (rows["partition"] == "paper")
        & (rows["num_local_steps"] == 10)
    )
    shared = Experiment(dataset="mnist", partition="paper", inner_learning_rate=0.01)
    seeds = [dataclasses.replace(shared, base_random_seed=seed) for seed in range(3)]
    diverged = [seeds[0], seeds[2]]
    diverged += [dataclasses.replace(e, algorithm="fed_avg") for e in seeds]
    table = lay_out(summarize_paper(rows[~gone], [0, 1], diverged), 1)
    for alpha in (0.01, 0.001):
        cells = table.loc[("mnist", "paper", 10, alpha)]
        assert (cells["FedAvg + update"] == "3 of 3 diverged").all()
    for users in ("seen", "new"):
        cell = table.loc[(*of_cell.values(), users), "Per-FedAvg exact"]
        assert re.fullmatch(r"[\d.]+ \(± [\d.]+\) 2 of 3 diverged", cell)
    assert table.stack().str.contains("diverged").sum() == 6


def test_the_papers_comparison_in_small(command, tmp_path):
    flags = (
        f"--flagfile={ROOT}/scripts/configs/paper_smoke.flags",
        f"--root_output_dir={tmp_path}",
        "--total_rounds=3",
        "--method=fed_avg,exact",
        "--inner_learning_rate=0.01,0.1",
    )
    said = command("reproduce_paper.py", *flags)
    for words in (
        "Before adapting: ",
        "After one step of adaptation: ",
        "After one step of adaptation, baselines:",
        "± over seeds",
    ):
        assert words in said
    # FedAvg is trained once for both rates; two seeds.
    models = [path.parent.name for path in tmp_path.glob("checkpoints/*/model.npz")]
    of_fed_avg = ["-fed_avg-" in name for name in models]
    assert (len(models), sum(of_fed_avg)) == (6, 2)
    rows = evaluations(tmp_path)
    table = pd.read_csv(tmp_path / "paper_table.csv")
    is_baseline = table["algorithm"].str.startswith("baseline: ")
    check_paper_baselines(table[is_baseline], tmp_path)
    table = table[~is_baseline]
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
        assert row["num_diverged"] == 0
        assert row["num_seeds"] == 2
        assert row["num_users"] == by_seed_and_user.shape[1]
    check_latex((tmp_path / "paper_table.tex").read_text(), num_rows=4, num_columns=12)


def check_paper_baselines(table, root):
    """Of five, seen and new, at two rates and steps, the means of FedAvg's two runs."""
    assert len(table) == 5 * 2 * 2 * 2
    rows = pd.concat(map(pd.read_csv, root.glob("results/*/baselines/*.csv")))
    assert rows["run"].nunique() == 2
    for _, line in table.iterrows():
        name = line["algorithm"].removeprefix("baseline: ")
        step = line["step"] if name == "local training" else 0
        cell = rows[
            (rows["algorithm"] == name)
            & (rows["users"] == line["users"])
            & (rows["step"] == step)
        ]
        assert np.isclose(line["mean"], cell["accuracy"].mean(), atol=1e-6)
        assert line["num_seeds"] == 2


@pytest.mark.slow
def test_the_smoke_setting_gives_the_committed_table(command, tmp_path):
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

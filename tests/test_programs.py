"""The jobs: training, evaluation, comparison, and the files they leave."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.helpers import relative_error
from tff_perfedavg import errors
from tff_perfedavg.experiments.evaluation import metrics
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.rows import write_rows
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.report import tables as report
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import atomic_write
from tff_perfedavg.fleet.cohort import sample_cohort

pytestmark = pytest.mark.usefixtures("shared_builds")

SHORT = Experiment(model="logistic_regression", total_rounds=4, num_local_steps=2)


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path, "short")


def test_training_keeps_the_last_round_not_the_best(tff, tmp_path):
    from tff_perfedavg.experiments.assemble.build import (
        build_client_data,
        build_model,
        build_process,
    )
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.training.training import train

    # One user a round, so that a hard user can come last.
    experiment = dataclasses.replace(SHORT, clients_per_round=1, base_random_seed=2)
    population = build_population(experiment, tmp_path)
    result = train(experiment, population)
    assert result.metrics["query_loss"].idxmin() != 3, "choose another seed"

    model = build_model(experiment, population)
    client_data = build_client_data(experiment, model, population)
    process = build_process(experiment, model, client_data)
    state = process.initialize()
    for round_number in range(4):
        cohort = sample_cohort(population.training_users, 1, 2, round_number)
        state = process.next(state, client_data.clients(cohort)).state
    expected = process.get_model_weights(state).trainable
    assert relative_error(result.weights, expected) == 0


def test_train_and_evaluate_from_files(tff, paths):
    from tff_perfedavg.experiments.evaluation.evaluate_runs import (
        evaluate_runs,
        read_trained,
    )
    from tff_perfedavg.experiments.training.training import train_and_save

    result = train_and_save(SHORT, paths)
    weights, experiment = trained_model.load(paths.model)
    assert experiment == SHORT
    assert relative_error(weights, result.weights) == 0
    metrics = pd.read_csv(paths.metrics, index_col="round_num")
    assert list(metrics.index) == [0, 1, 2, 3]
    assert {"support_loss", "query_loss", "adaptation_gain", "update_norm"} < {*metrics}
    hparams = pd.read_csv(paths.hparams, index_col="name")["value"]
    assert hparams["inner_learning_rate"] == "0.01"
    # Of the algorithm's own those at their defaults, too, and of no other's.
    assert hparams["inner_steps"] == "1"
    assert "learned_rates" not in hparams

    trained = read_trained([paths])
    per_user = evaluate_runs(trained, {"num_steps": 3})
    assert len(per_user) == 26 * 4
    assert per_user.groupby("users")["user"].nunique().to_dict() == {
        "new": 6,
        "seen": 20,
    }
    again = evaluate_runs(trained, {"inner_learning_rate": 0.01, "num_steps": 3})
    pd.testing.assert_frame_equal(per_user, again)
    further = evaluate_runs(trained, {"inner_learning_rate": 0.02, "num_steps": 3})
    assert not np.allclose(per_user["loss"], further["loss"])
    held = evaluate_runs(trained, {"moves": "head", "pull": 2.0, "num_steps": 3})
    first, second = (frame.query("step == 0")["loss"] for frame in (per_user, held))
    assert np.array_equal(first, second)
    assert not np.allclose(per_user["loss"], held["loss"])


def test_a_user_whose_model_diverges_counts_as_wrong_in_everything(tff, tmp_path):
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.evaluation.evaluate_users import evaluate_users
    from tff_perfedavg.experiments.evaluation.selection import select
    from tff_perfedavg.models.dense import logistic_regression
    from tff_perfedavg.optimization.config import AdaptationConfig

    population = build_population(SHORT, tmp_path)
    model = logistic_regression((8, 8), 10)
    frames = [
        evaluate_users(
            model, model.init(0), population, AdaptationConfig(rate, 3)
        ).assign(rate=rate, seed=0)
        for rate in (0.1, 1e38)
    ]
    per_user = pd.concat(frames, ignore_index=True)
    diverged = per_user[(per_user["rate"] == 1e38) & (per_user["step"] == 3)]
    assert np.isinf(diverged["loss"]).all()
    assert (diverged["accuracy"] == 0).all()
    chosen = select(per_user, [], ["rate", "step"])
    assert (chosen["rate"] == 0.1).all()


def test_users_are_the_same_where_their_rows_are(tff, tmp_path):
    from tff_perfedavg.experiments.evaluation.evaluate_runs import (
        have_same_users,
        read_trained,
    )

    runs = [RunPaths(tmp_path, name) for name in ("first", "second", "other")]
    weights = [np.zeros([64, 10], np.float32), np.zeros([10], np.float32)]
    for run, seed in zip(runs, (0, 0, 1), strict=True):
        experiment = dataclasses.replace(SHORT, base_random_seed=seed)
        trained_model.save(run.model, weights, experiment)
    trained = read_trained(runs)
    assert have_same_users(trained[:2])
    assert not have_same_users(trained[1:])


def test_runs_of_one_algorithm_go_by_their_names(tff, tmp_path):
    from tff_perfedavg.experiments.evaluation.evaluate_runs import (
        evaluate_runs,
        read_trained,
    )

    runs = [RunPaths(tmp_path, name) for name in ("first", "second", "third")]
    weights = [np.zeros([64, 10], np.float32), np.zeros([10], np.float32)]
    fed_avg = dataclasses.replace(SHORT, algorithm="fed_avg")
    for run, experiment in zip(runs, (SHORT, SHORT, fed_avg), strict=True):
        trained_model.save(run.model, weights, experiment)
    names = evaluate_runs(read_trained(runs[:2]), {"num_steps": 0})["algorithm"]
    assert [*names.unique()] == ["first", "second"]
    names = evaluate_runs(read_trained(runs[1:]), {"num_steps": 0})["algorithm"]
    assert [*names.unique()] == ["Per-FedAvg exact", "FedAvg + update"]


@pytest.fixture
def evaluate(run, tmp_path):
    """Evaluates runs by name as the command does."""

    def evaluate(*names, flags=()):
        return run(
            "evaluate.py",
            f"--root_output_dir={tmp_path}",
            f"--experiment_name={','.join(names)}",
            "--adaptation_steps=1",
            *flags,
        )

    return evaluate


def test_of_three_runs_of_which_one_has_no_model_two_are_shown(evaluate, tmp_path):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=[64, 10]).astype(np.float32), np.zeros(10, np.float32)]
    for name in ("first", "third"):
        trained_model.save(RunPaths(tmp_path, name).model, weights, SHORT)
    answer = evaluate("first", "second", "third")
    assert answer.returncode == 0, answer.stderr
    missing = RunPaths(tmp_path, "second").model
    assert f"warning: left out: No trained model at {missing}" in answer.stderr
    results = RunPaths(tmp_path, "first").results
    table = pd.read_csv(results / "evaluation.table.csv")
    assert [*table["algorithm"].unique()] == [
        "majority class",
        "first, absent classes masked",
        "first + label shares",
        "third, absent classes masked",
        "third + label shares",
        "local training",
        "local training to convergence",
        "first",
        "third",
    ]
    kinds = table.groupby("algorithm")["kind"].unique()
    assert [*kinds["first"], *kinds["third"]] == ["method"] * 2
    assert [*kinds.drop(["first", "third"]).explode()] == ["baseline"] * 7
    lines = (rf"^\w* +{re.escape(name)} +(-|0) " for name in kinds.index)
    for line in lines:
        # Of seen users, of new ones, and by the number of classes they hold.
        assert len(re.findall(line, answer.stdout, re.MULTILINE)) == 4
    # Whoever reads a block from its top meets the mark first.
    blocks = re.findall(r"^kind .*\n(\w+ +.*)$", answer.stdout, re.MULTILINE)
    assert [block.split()[0] for block in blocks[:2]] == ["baseline"] * 2
    assert "seen  first third" in answer.stdout
    assert answer.stdout.startswith("Users adapt all weights in 1 step at rate 0.01.\n")
    assert (results / "evaluation.comparison.csv").is_file()
    assert {*table["adaptation"]} == {
        "num_steps=1 inner_learning_rate=0.01 moves=all seed=0"
    }
    # Nobody is worse off who takes no steps.
    adapts = table["algorithm"].isin(["local training", "first", "third"])
    assert (table["made_worse"].notna() == adapts).all()
    # Three baselines by labels, steps 0 and 1 alone, and alone to convergence.
    for name in ("first", "third"):
        run = RunPaths(tmp_path, name)
        assert len(pd.read_csv(run.baselines)) == (3 + 2 + 1) * 26
        rows = pd.read_csv(run.per_user)
        assert {*rows["algorithm"]} == {name}
    held = pd.read_csv(results / "evaluation.classes_held.csv")
    assert {*held["algorithm"]} == {*kinds.index}
    assert held["num_classes_held"].nunique() > 1


def test_missing_baselines_are_measured_as_the_results_beside_them_were(
    tff, tmp_path, monkeypatch
):
    from tff_perfedavg.experiments.evaluation import evaluate_runs as evaluation

    runs = {name: RunPaths(tmp_path, name) for name in ("first", "second", "old")}
    weights = [np.zeros([64, 10], np.float32), np.zeros([10], np.float32)]
    rows = pd.DataFrame({"loss": [1.0]})
    told = {
        "first": "num_steps=9 inner_learning_rate=0.2 moves=head head_tensors=1 seed=4",
        "second": "num_steps=2 inner_learning_rate=0.01 moves=all seed=0",
    }
    for name, run in runs.items():
        trained_model.save(run.model, weights, SHORT)
        adaptation = {"adaptation": told[name]} if name in told else {}
        write_rows(rows.assign(**adaptation), run.per_user)
    measured = {}

    def measure(trained, changes, *, seed):
        (run,) = trained
        config = run.adaptation(changes)
        measured[run.label] = (config.num_steps, config.moves, config.head_tensors)
        measured[run.label] += (config.inner_learning_rate, seed)
        return [rows]

    monkeypatch.setattr(evaluation, "evaluate_baselines_of_runs", measure)
    (said,) = evaluation.complete([], [*runs.values()], 5)
    assert measured == {
        "first": (9, "head", 1, 0.2, 4),
        "second": (2, "all", 2, 0.01, 0),
    }
    assert said.startswith("The results of old do not tell")
    written = {name for name, run in runs.items() if run.has_baselines}
    assert written == {*told}


def test_without_baselines_there_are_methods_alone(evaluate, tmp_path):
    weights = [np.ones([64, 10], np.float32), np.zeros(10, np.float32)]
    paths = RunPaths(tmp_path, "first")
    trained_model.save(paths.model, weights, SHORT)
    answer = evaluate("first", flags=["--nobaselines"])
    assert answer.returncode == 0, answer.stderr
    for words in ("local training", "majority class", "baseline ", "method "):
        assert words not in answer.stdout
    assert not paths.baselines.exists()
    refused = evaluate("first", flags=["--nobaselines", "--pooled"])
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: pooled is true, but baselines is false; pooled training is a "
        "baseline.\n"
    )


def test_a_regressor_has_the_baselines_that_need_no_classes(
    evaluate, tmp_path, monkeypatch
):
    from tff_perfedavg.experiments.evaluation import pooled_training
    from tff_perfedavg.models.dense import mlp_regressor

    monkeypatch.setattr(pooled_training, "NUM_STEPS", 3)
    experiment = dataclasses.replace(
        SHORT, dataset="sinusoid", model="mlp_regressor", num_users=6, num_new_users=2
    )
    paths = RunPaths(tmp_path, "wave")
    trained_model.save(paths.model, mlp_regressor((1,), 1).init(0), experiment)
    answer = evaluate("wave", flags=["--pooled"])
    assert answer.returncode == 0, answer.stderr
    assert "warning" not in answer.stderr
    found = pd.read_csv(paths.baselines)
    assert found.groupby("baseline", sort=False).size().to_dict() == {
        "local training": 2 * 6,
        "local training to convergence": 6,
        "pooled training": 2 * 6,
    }
    assert "classes" not in answer.stdout


def test_the_model_of_a_run_that_diverged_is_shown_with_a_warning(tmp_path):
    from tff_perfedavg.experiments.files.trained_runs import (
        diverged_experiment,
        with_model,
    )

    whole, diverged = runs = [RunPaths(tmp_path, name) for name in ("whole", "cut")]
    for run in runs:
        trained_model.save(run.model, [np.zeros([3])], SHORT)
    facts = {"round_num": 2, "message": "", "experiment": SHORT.flat()}
    with atomic_write(diverged.diverged) as file:
        file.write(json.dumps(facts).encode())
    found, (warning,) = with_model(runs)
    assert found == runs
    assert warning.startswith("cut diverged; its model is that of the last round")
    assert diverged_experiment(diverged) == SHORT
    assert diverged_experiment(whole) is None
    diverged.diverged.write_text("{")
    with pytest.raises(errors.CheckpointError, match=r"diverged\.json is unreadable"):
        diverged_experiment(diverged)


def test_runs_of_which_none_has_a_model_are_an_error(evaluate):
    answer = evaluate("first", "second")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: No trained model at")
    assert answer.stderr.count("\n") == 1


def test_weights_of_another_model_are_refused(tff, paths):
    from tff_perfedavg.experiments.evaluation.evaluate_runs import read_trained

    trained_model.save(paths.model, [np.zeros([3])], SHORT)
    with pytest.raises(errors.CheckpointError, match=r"model\.npz has weights of oth"):
        read_trained([paths])


def test_a_diverging_run_stops_with_the_round_and_the_remedy(tff, tmp_path):
    from tff_perfedavg.experiments.assemble.population import build_population
    from tff_perfedavg.experiments.training.training import train

    experiment = dataclasses.replace(SHORT, outer_learning_rate=1e38)
    population = build_population(experiment, tmp_path)
    with pytest.raises(errors.PerFedAvgError, match=r"Round \d: not one of 5.*Lower"):
        train(experiment, population)


def test_a_tenth_of_the_users_without_finite_updates_is_left_out_and_told(
    tff, paths, tmp_path, capsys
):
    from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
    from tff_perfedavg.experiments.training.training import train_and_save

    rng = np.random.default_rng(0)

    def user(number):
        # Finite themselves, but not what comes of them.
        size = 1e30 if number % 10 == 0 else 1.0
        x = (size * rng.normal(size=[12, 4])).astype(np.float32)
        rows = Rows(x, (x[:, 0] > 0).astype(np.int32))
        return User(rows, Rows(rows.x[:0], rows.y[:0]))

    store = UserStore.write(
        tmp_path / "store", map(user, range(20)), Description("numbers", 2)
    )
    experiment = dataclasses.replace(SHORT, store=str(store.path), clients_per_round=20)
    result = train_and_save(experiment, paths)
    assert (result.metrics["num_users_excluded"] == 2).all()
    assert (result.metrics["num_users_taken"] == 18).all()
    assert all(np.isfinite(w).all() for w in result.weights)
    told = capsys.readouterr().err
    assert told.count("2 of 20 users' updates were not finite and were left out") == 1


def test_a_cohort_larger_than_the_population_is_refused_before_any_work():
    with pytest.raises(errors.ConfigError, match=r"clients_per_round is 21.*from 1 to"):
        sample_cohort(range(20), 21, 0, 0)


def test_cohorts_are_uniform_without_replacement_and_repeat():
    counts = np.zeros(10)
    for round_number in range(2000):
        cohort = sample_cohort(np.arange(10), 3, 5, round_number)
        assert len(set(cohort)) == 3
        counts[cohort] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 0.05
    assert np.array_equal(
        sample_cohort(range(9), 3, 5, 7), sample_cohort(range(9), 3, 5, 7)
    )
    assert not np.array_equal(
        sample_cohort(range(99), 9, 5, 7), sample_cohort(range(99), 9, 6, 7)
    )


def per_user_rows():
    # Twenty seen users; accuracy before is user / 20, and after one step 0.5.
    rows = [
        {
            "algorithm": "A",
            "seed": seed,
            "users": "seen",
            "user": user,
            "step": step,
            "loss": 1.0 - step,
            "accuracy": 0.5 if step else user / 20,
        }
        for seed in (0, 1)
        for user in range(20)
        for step in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_summary_has_the_values_worked_out_by_hand():
    summary = metrics.summarize(per_user_rows())
    before, after = (summary.loc["seen", "A", step] for step in (0, 1))
    assert before["num_users"] == after["num_users"] == 40
    assert np.isclose(before["accuracy"], 19 / 40)
    both = np.tile(np.arange(20) / 20, 2)
    assert np.isclose(before["accuracy_sd"], both.std(ddof=1))
    # The worst tenth of 40: users 0 and 1 of both seeds.
    assert np.isclose(before["worst_decile"], (0 + 0.05) / 2)
    assert np.isclose(after["worst_decile"], 0.5)
    # Users 11 to 19 had more than 0.5.
    assert before["made_worse"] == 0
    assert np.isclose(after["made_worse"], 9 / 20)


def test_the_report_is_written_and_printed(tmp_path):
    rows = per_user_rows()
    files = report.write_report(rows, tmp_path)
    assert [f.name for f in files] == [
        "table.csv",
        "adaptation_curve.png",
    ]
    assert len(pd.read_csv(files[0])) == 2
    assert len(pd.read_csv(write_rows(rows, tmp_path / "rows.csv"))) == 80
    assert files[1].read_bytes().startswith(b"\x89PNG")
    text = report.format_table(metrics.summarize(rows), {0, 1})
    assert "Users seen in training (40):" in text
    assert "47.5" in text


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic_write(path) as file:
        file.write(b"first")

    class Broken(Exception):
        pass

    def write_badly():
        with atomic_write(path) as file:
            file.write(b"second")
            raise Broken

    with pytest.raises(Broken):
        write_badly()
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_writer_killed_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, time\n"
            "from tff_perfedavg.files import atomic_write\n"
            "with atomic_write(pathlib.Path(sys.argv[1])) as file:\n"
            "    file.write(b'x' * 10**6); file.flush(); print('half', flush=True)\n"
            "    time.sleep(60)\n",
            path,
        ],
        stdout=subprocess.PIPE,
    )
    assert writer.stdout.readline() == b"half\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-40]),
        lambda p: p.write_bytes(b"not a model"),
        lambda p: p.write_bytes(b""),
        lambda p: np.savez(p, header=np.array("{}")),
        lambda p: np.savez(p, other=np.zeros(3)),
    ],
)
def test_a_damaged_model_file_is_refused_by_name(paths, damage):
    trained_model.save(paths.model, [np.zeros([3])], SHORT)
    damage(paths.model)
    with pytest.raises(errors.CheckpointError, match=r"model\.npz is no readable"):
        trained_model.load(paths.model)


def test_a_missing_model_file_says_how_to_make_one(paths):
    with pytest.raises(errors.CheckpointError, match=r"No trained model at .*train"):
        trained_model.load(paths.model)


def test_a_model_file_of_another_version_is_refused(paths):
    header = '{"format_version": 99}'
    paths.model.parent.mkdir(parents=True)
    np.savez(paths.model, header=np.array(header))
    with pytest.raises(errors.CheckpointError, match=r"format version 99.*reads 1"):
        trained_model.load(paths.model)


@pytest.mark.slow
def test_after_one_step_exact_and_hessian_free_lead_fed_avg(tff, tmp_path):
    from tff_perfedavg.experiments.study.comparison import compare

    per_user, _ = compare(Experiment(), range(3), adaptation_steps=1, root=tmp_path)
    accuracy = metrics.summarize(per_user)["accuracy"]
    for users in ("seen", "new"):
        baseline = accuracy[users, "FedAvg + update", 1]
        assert accuracy[users, "Per-FedAvg exact", 1] > baseline
        assert accuracy[users, "Per-FedAvg Hessian-free", 1] > baseline

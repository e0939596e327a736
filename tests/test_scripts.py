"""The commands as a user runs them."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run_process(script, *flags):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *flags],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "script",
    [
        "train.py",
        "evaluate.py",
        "demo.py",
        "prepare_data.py",
        "benchmark_scale.py",
        "export_tflite.py",
        "personalize.py",
        "personalize_on_device.py",
        "serve_web_demo.py",
        "build_web_app.py",
        "benchmark_guard.py",
        "start_worker.py",
        "diagnose.py",
        "report.py",
        "sweep.py",
        "reproduce_paper.py",
    ],
)
def test_help_answers_without_loading_a_framework(script):
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "scripts" / script, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert answer.returncode == 0
    assert re.search("--.*(_dir|model|output|port)", answer.stdout)
    loaded = set(re.findall(r"\| +(\w+)$", answer.stderr, re.MULTILINE))
    assert "tff_perfedavg" in loaded
    assert not loaded & {"tensorflow", "tensorflow_federated", "pandas", "numpy"}


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train.py", [], "--experiment_name"),
        ("train.py", ["--experiment_name=a/b"], "experiment_name is 'a/b'"),
        (
            "train.py",
            ["--experiment_name=a", "--inner_learning_rate=0"],
            "inner_learning_rate is 0.0; it must be a finite number above 0",
        ),
        ("train.py", ["--experiment_name=a", "--variant=full"], "exact|first_order"),
        (
            "train.py",
            ["--experiment_name=a", "--algorithm=fed_avg", "--variant=exact"],
            "variant is exact, but fed_avg has no such setting",
        ),
        (
            "sweep.py",
            ["--grid=method=fed_avg,first_order", "--hessian_batch=support"],
            "hessian_batch is support, but fed_avg has no such setting",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--dataset=sinusoid"],
            "model is 'mlp', which predicts classes, but the labels of sinusoid are "
            "numbers; choose mlp_regressor or your own",
        ),
        (
            "sweep.py",
            ["--grid=model=mlp_regressor,cnn"],
            "model is 'mlp_regressor', which predicts numbers, but the labels of "
            "digits are classes; choose mlp, logistic_regression, cnn",
        ),
        ("train.py", ["--experiment_name=a", "more"], "unknown argument 'more'"),
        (
            "train.py",
            ["--experiment_name=a", "--model=resnet"],
            "model is 'resnet'; known: mlp",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--model=/nope.py:f"],
            "model is '/nope.py:f', but there is no file /nope.py",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--initial=/nope.npz"],
            "No trained model at /nope.npz; train one",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--server_optimizer=lamb"],
            "<sgdm|adam|yogi|adagrad>",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--server_optimizer=adam", "--server_momentum=0.9"],
            "server_momentum is 0.9, but server_optimizer adam has none",
        ),
        (
            "sweep.py",
            ["--grid=server_learning_rate=1,0"],
            "server_learning_rate is 0.0; it must be a number above 0",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--root_output_dir=/dev/null/x"],
            "/dev/null is no directory",
        ),
        ("train.py", [f"--experiment_name={'n' * 256}"], "has 256 bytes"),
        (
            "train.py",
            ["--experiment_name=a", "--dataset=mnist", "--data_dir=/nowhere"],
            "data directory /nowhere is no directory",
        ),
        (
            "sweep.py",
            ["--grid=method=exact", "--dataset=mnist", "--data_dir=/nowhere"],
            "data directory /nowhere is no directory",
        ),
        (
            "sweep.py",
            ["--grid=method=exact", "--root_output_dir=/dev/null/x"],
            "/dev/null is no directory",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--workers=here"],
            "workers has 'here'; write host:port",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--workers=here:1", "--aggregator=secure"],
            "aggregator is secure, which TFF cannot spread over workers",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--aggregator=dp_fixed", "--clipping_norm=1"],
            "noise_multiplier is 0.0; dp_fixed needs a number above 0",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--best_metric=accuracy"],
            "best_metric is 'accuracy'; it is seen or new",
        ),
        (
            "train.py",
            ["--experiment_name=a", "--store=s", "--partition=iid"],
            "partition given with a store, which is divided already",
        ),
        (
            "personalize.py",
            ["--experiment_name=a", "--output_dir=b", "--users=1,x"],
            "users has 'x'; it takes whole numbers",
        ),
        ("start_worker.py", ["--port=99999"], "port=99999"),
        (
            "evaluate.py",
            ["--experiment_name=a", "--inner_learning_rate=0"],
            "inner_learning_rate is 0.0",
        ),
        ("prepare_data.py", ["--output_dir=x"], "--dataset is missing; known"),
        (
            "prepare_data.py",
            ["--output_dir=x", "--dataset=digits", "--partition=natural"],
            "digits does not say whose",
        ),
        ("prepare_data.py", ["--output_dir=x", "--describe"], "No user store at"),
        (
            "prepare_data.py",
            ["--output_dir=x", "--describe"],
            "On the command line: scripts/prepare_data.py.",
        ),
        (
            "prepare_data.py",
            ["--output_dir=x", "--dataset=uci_har", "--data_dir=/"],
            "On the command line: --data_dir.",
        ),
        (
            "evaluate.py",
            ["--experiment_name=a", "--adaptation_steps=-1"],
            "num_steps is -1",
        ),
        (
            "export_tflite.py",
            ["--checkpoint=nowhere.npz", "--output=model.tflite"],
            "No trained model at nowhere.npz",
        ),
        (
            "export_tflite.py",
            ["--checkpoint=nowhere.npz", "--output=model.bin"],
            "output is model.bin; it must end in .tflite",
        ),
        (
            "export_tflite.py",
            ["--checkpoint=a", "--output=b.tflite", "--batch_size=0"],
            "batch_size is 0",
        ),
        (
            "personalize_on_device.py",
            ["--model=nowhere.tflite", "--store=nowhere"],
            "No model can be read at nowhere.tflite",
        ),
        (
            "personalize_on_device.py",
            ["--model=a", "--store=b", "--inner_learning_rate=-1"],
            "inner_learning_rate is -1.0",
        ),
        ("report.py", [], "--run"),
        ("report.py", ["--run=a/b"], "experiment_name is 'a/b'"),
        ("report.py", ["--run=a,a"], "named twice in a, a"),
        ("report.py", ["--run=a", "--output=page"], "it must end in .html"),
        ("report.py", ["--run=a", "--root_output_dir=x"], "No trained model at x/"),
        ("sweep.py", [], "--grid"),
        (
            "sweep.py",
            ["--grid=colour=1"],
            "axis of the grid is 'colour'; known: method",
        ),
        ("sweep.py", ["--grid=method"], "write method=VALUE,VALUE"),
        ("sweep.py", ["--grid=method=sgd"], "method is 'sgd'; known: fed_avg"),
        ("sweep.py", ["--grid=batch_size=few"], "grid has 'batch_size=few'"),
        (
            "sweep.py",
            ["--grid=batch_size=5", "--grid=batch_size=10"],
            "grid has batch_size twice",
        ),
        ("sweep.py", ["--grid=algorithm=fed_avg"], "name methods instead"),
        (
            "sweep.py",
            ["--grid=method=exact", "--choose=method", "--choosing_seeds=7"],
            "choosing_seeds has 7, which is no base_random_seed of the grid",
        ),
        (
            "sweep.py",
            ["--grid=base_random_seed=0,1", "--choosing_seeds=0"],
            "there is nothing for them to choose",
        ),
        (
            "sweep.py",
            [
                "--grid=base_random_seed=0,1",
                "--grid=method=exact",
                "--choose=method,base_random_seed",
                "--choosing_seeds=0",
            ],
            "choose names base_random_seed, but choosing_seeds",
        ),
        (
            "sweep.py",
            ["--grid=method=exact", "--choose=batch_size"],
            "choose is 'batch_size'; known: method",
        ),
        (
            "sweep.py",
            ["--grid=method=exact", "--adaptation_learning_rates=0.1,fast"],
            "adaptation_learning_rates has 'fast'; it takes numbers",
        ),
        (
            "sweep.py",
            ["--grid=method=exact", "--adaptation_learning_rates=0"],
            "inner_learning_rate is 0.0",
        ),
        (
            "sweep.py",
            ["--grid=method=exact", "--adaptation_rows=-1"],
            "num_rows is -1",
        ),
        ("reproduce_paper.py", ["--dataset=paper"], "dataset is 'paper'; known: "),
        ("reproduce_paper.py", ["--method=sgd"], "method is 'sgd'; known: fed_avg"),
        ("reproduce_paper.py", ["--partition=iid"], "partition is 'iid'; known: paper"),
        ("reproduce_paper.py", ["--seeds=one"], "seeds has 'one'; it takes whole num"),
        (
            "reproduce_paper.py",
            ["--inner_learning_rate=0.1,0"],
            "inner_learning_rate is 0.0",
        ),
        ("reproduce_paper.py", ["--num_local_steps=0"], "num_local_steps is 0"),
        *[
            (script, [*needed, f"--{seed}=-1"], f"--{seed}=-1: ")
            for script, seed, *needed in (
                ("diagnose.py", "base_random_seed", "--experiment_name=a"),
                ("evaluate.py", "base_random_seed", "--experiment_name=a"),
                ("personalize.py", "base_random_seed", "--experiment_name=a"),
                ("personalize_on_device.py", "base_random_seed", "--model=a"),
                ("prepare_data.py", "seed", "--output_dir=x"),
                ("sweep.py", "selection_seed", "--grid=method=exact"),
            )
        ],
        ("reproduce_paper.py", ["--total_rounds=0"], "total_rounds is 0"),
    ],
)
def test_bad_flags_are_refused_before_any_work(run, script, flags, message):
    answer = run(script, *flags)
    assert answer.returncode == 1
    assert message in answer.stderr + answer.stdout
    assert "Traceback" not in answer.stderr


def test_evaluating_a_run_that_is_not_there_says_so(run, tmp_path):
    answer = run("evaluate.py", "--experiment_name=a", f"--root_output_dir={tmp_path}")
    assert answer.returncode == 1
    assert "No trained model at" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_run_from_its_flagfile_to_a_device_s_file_as_it_is_typed(tmp_path):
    flagfile = tmp_path / "flags"
    flagfile.write_text("--experiment_name=short\n--total_rounds=3\n--batch_size=5\n")
    root = f"--root_output_dir={tmp_path}"
    trained = run_process("train.py", f"--flagfile={flagfile}", root)
    assert trained.returncode == 0, trained.stderr
    assert "3/3" in trained.stderr
    assert "loss=" in trained.stderr
    # Nothing on the terminal but the progress bar.
    assert not re.search(r"^\d{4}-|Warning", trained.stderr, re.MULTILINE)

    evaluated = run_process("evaluate.py", "--experiment_name=short", root)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "New users (6):" in evaluated.stdout
    table = pd.read_csv(tmp_path / "results" / "short" / "evaluation.table.csv")
    kinds = table["kind"].value_counts()
    # Four baselines without steps, and local training with as many as the method.
    assert kinds.to_dict() == {"method": 2 * 6, "baseline": 2 * (4 + 6)}
    assert not evaluated.stderr

    page = tmp_path / "results" / "short" / "report.html"
    reported = run_process("report.py", "--run=short", root)
    assert reported.returncode == 0, reported.stderr
    assert not reported.stderr
    assert f"Written:\n  {page}" in reported.stdout
    assert page.read_text().startswith("<!doctype html>")

    path = tmp_path / "short.tflite"
    checkpoint = tmp_path / "checkpoints" / "short" / "model.npz"
    exported = run_process(
        "export_tflite.py", f"--checkpoint={checkpoint}", f"--output={path}"
    )
    assert exported.returncode == 0, exported.stderr
    assert not exported.stderr
    assert f"Written: {path} ({path.stat().st_size:,} bytes)" in exported.stdout


@pytest.mark.parametrize("script", ["evaluate.py", "personalize.py"])
def test_a_heads_size_is_refused_where_all_weights_move(run, trained, script, tmp_path):
    flags = [f"--root_output_dir={trained.paths.root}", "--experiment_name=trained"]
    if script == "personalize.py":
        flags.append(f"--output_dir={tmp_path / 'users'}")
    answer = run(script, *flags, "--adaptation_head_tensors=2")
    assert answer.returncode == 1
    assert "adaptation_head_tensors is 2, but all weights move" in answer.stderr


def test_diagnose_measures_a_trained_run(run, trained):
    root = f"--root_output_dir={trained.paths.root}"
    measured = run("diagnose.py", "--experiment_name=trained", root, "--num_users=3")
    assert measured.returncode == 0, measured.stderr
    found = pd.read_csv(trained.paths.results / "diagnostics.csv", index_col=0)[
        "trained"
    ]
    assert found["sigma_g"] > 0
    assert found["gamma_g"] > 0
    assert 0 < found["hessian_free_error"] < found["first_order_error"]
    per_user = pd.read_csv(trained.paths.results / "diagnostics.per_user.csv")
    assert [*per_user["run"]] == ["trained"] * 3
    assert (per_user["num_rows"] > 0).all()
    # At the run's inner learning rate, 0.01.
    assert found["share_above_one"] == (0.01 * per_user["curvature"] > 1).mean()
    assert found["curvature_max"] == pytest.approx(per_user["curvature"].max())
    assert found["proposed_alpha"] * found["curvature_max"] < 1
    assert "trained: with alpha 0.01, curvature is above\n" in measured.stdout
    assert "Not measured: 17 users more; --num_users=0 takes all." in measured.stdout


def test_diagnose_measures_curvature_alone(run, trained):
    root = f"--root_output_dir={trained.paths.root}"
    flags = "--experiment_name=trained", root, "--num_users=2", "--notheory"
    measured = run("diagnose.py", *flags)
    assert measured.returncode == 0, measured.stderr
    assert "curvature_max" in measured.stdout
    assert "sigma_g" not in measured.stdout


def test_prepare_then_describe_then_train_on_the_store(run, tmp_path):
    place = f"--output_dir={tmp_path / 'store'}"
    prepared = run(
        "prepare_data.py",
        place,
        "--dataset=digits",
        "--partition=iid",
        "--num_users=30",
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "divided by            dataset=digits, partition=iid" in prepared.stdout
    assert (tmp_path / "store.png").read_bytes().startswith(b"\x89PNG")
    described = run("prepare_data.py", place, "--describe", "--verify")
    assert described.stdout.splitlines()[1:] == prepared.stdout.splitlines()
    again = run("prepare_data.py", place, "--dataset=digits")
    assert again.returncode == 1
    assert "exists already" in again.stderr

    flags = ["--experiment_name=a", "--total_rounds=2", f"--root_output_dir={tmp_path}"]
    trained = run("train.py", f"--store={tmp_path / 'store'}", *flags)
    assert trained.returncode == 0, trained.stderr
    evaluated = run("evaluate.py", *flags[::2], "--adaptation_steps=1")
    assert "Users seen in training (24):" in evaluated.stdout


def test_export_and_personalize_on_devices(
    run, commands, trained, tmp_path, monkeypatch
):
    path = tmp_path / "results" / "digits.tflite"
    exported = run(
        "export_tflite.py",
        f"--checkpoint={trained.paths.model}",
        f"--output={path}",
        "--license=CC0-1.0",
        "--max_local_steps=2",
    )
    assert exported.returncode == 0, exported.stderr
    # What differs from training, and nothing else.
    (warning,) = exported.stderr.splitlines()
    assert "meta_update takes fewer than the 10 local steps of training" in warning
    assert f"Written: {path} ({path.stat().st_size:,} bytes)" in exported.stdout
    assert "Largest difference from TensorFlow in litert's runtime" in exported.stdout

    from tff_perfedavg.ondevice.runner import OnDeviceModel

    card = OnDeviceModel(path).card
    assert card["license"] == "CC0-1.0"
    assert card["dataset"] == "digits"
    assert [result["users"] for result in card["results"]] == ["seen"] * 2 + ["new"] * 2
    assert all(0 <= result["accuracy"] <= 1 for result in card["results"])

    played = run(
        "personalize_on_device.py",
        f"--model={path}",
        f"--store={trained.paths.root / 'stores' / 'digits-seed0'}",
        "--num_users=8",
        "--adaptation_steps=2",
        f"--output_dir={tmp_path}",
    )
    assert played.returncode == 0, played.stderr
    assert "Users seen in training (6):" in played.stdout
    assert "New users (2):" in played.stdout
    for word in ("bytes", "Median latency: adapt", "meta_update", "Peak memory"):
        assert word in played.stdout
    assert len(pd.read_csv(tmp_path / "on_device.per_user.csv")) == 8 * 3

    rows = "import numpy as np; x, y = np.zeros([6, 8, 8]), np.arange(6) % 3\n"
    header = "import tff_perfedavg as pfa\n"
    monkeypatch.chdir(tmp_path)
    commands.run_text(rows + header + "".join(examples_of("docs/on_device.md")))
    assert (tmp_path / "owner.bin").is_file()
    assert (tmp_path / "users" / "anna" / "state.json").is_file()


def test_the_demo_prints_and_writes_its_report(run, tmp_path):
    demo = run(
        "demo.py",
        "--total_rounds=3",
        "--num_seeds=1",
        "--adaptation_steps=2",
        f"--root_output_dir={tmp_path}",
    )
    assert demo.returncode == 0, demo.stderr
    for label in (
        "FedAvg + update",
        "Per-FedAvg first-order",
        "Per-FedAvg Hessian-free",
        "Per-FedAvg exact",
    ):
        assert label in demo.stdout
    assert (tmp_path / "adaptation_curve.png").is_file()
    table = pd.read_csv(tmp_path / "table.csv")
    # Of five baselines one has steps.
    assert len(table) == 4 * 2 * 3 + (4 + 3) * 2
    assert "FedAvg + label shares" in demo.stdout
    check_own_labels(demo.stdout, tmp_path)


def check_own_labels(said, root):
    """The demo's second half: five labels of a user's own, known to no model."""
    assert "Five digits of each user, under labels of its own" in said
    table = pd.read_csv(root / "own_labels.table.csv")
    # Of nine baselines one has steps.
    assert len(table) == 3 * 2 * 3 + (8 + 3) * 2
    before = table[table["algorithm"].str.startswith("Per-FedAvg") & (table.step == 0)]
    assert (before["accuracy"] - 0.2).abs().max() < 0.12
    assert (root / "own_labels.adaptation_curve.png").is_file()


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("no-such-python", "no-such-python was not found; install Python 3.10 or 3.11"),
        ("echo", "not supported"),
    ],
)
def test_an_unsupported_python_is_told_in_one_sentence(tmp_path, python, message):
    answer = subprocess.run(
        ["sh", ROOT / "scripts" / "create_venv.sh", python, tmp_path / "venv", "lock"],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_bazel_without_pytest_is_told_with_the_remedy(tmp_path):
    script = tmp_path / "scripts" / "bazel_offline.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "scripts" / "bazel_offline.sh", script)
    # A Python that has no packages, as `make demo` leaves one without pytest.
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    answer = subprocess.run(["sh", script], capture_output=True, text=True)
    assert answer.returncode == 1
    assert re.search(r"has no pytest.*run 'make test' first", answer.stderr)
    assert answer.stderr.count("\n") == 1


def examples_of(document):
    """The Python examples of a document."""
    text = (ROOT / document).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def example_of(document):
    """The one Python example of a document."""
    (example,) = examples_of(document)
    return example


def test_the_example_of_the_data_guide_runs_as_printed(
    commands, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    commands.run_text(example_of("docs/data.md"))
    assert capsys.readouterr().out == "100 20 (20, 8)\n"


def test_users_own_weights_and_the_example_of_the_training_guide(
    run, commands, trained, tmp_path, monkeypatch, capfd
):
    saved = run(
        "personalize.py",
        "--experiment_name=trained",
        f"--output_dir={tmp_path / 'results' / 'adapted'}",
        "--group=new",
        f"--root_output_dir={trained.paths.root}",
    )
    assert saved.returncode == 0, saved.stderr
    assert "weights of 6 users" in saved.stdout
    monkeypatch.chdir(tmp_path)
    commands.run_text(example_of("docs/training.md"))
    assert capfd.readouterr().out.startswith(
        "6 [(64, 80), (80,), (80, 60), (60,), (60, 10), (10,)] 0"
    )


def test_the_readmes_example_runs_as_printed(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", examples_of("README.md")[0]],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert answer.returncode == 0, answer.stderr
    metrics, accuracy = answer.stdout.splitlines()
    assert "support_loss" in metrics
    assert len(accuracy.strip("[]").split()) == 4


def test_a_million_users_are_measured_with_few(run, tmp_path):
    store, figures = tmp_path / "store", tmp_path / "figures.json"
    answer = run(
        "benchmark_store.py",
        "--num_users=40",
        "--cohort=10",
        f"--store_dir={store}",
        f"--output={figures}",
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert "40 users" in answer.stdout
    found = json.loads(figures.read_text())
    assert found["read"]["milliseconds_per_user"] > 0
    assert not store.exists()


@pytest.mark.slow
def test_contenders_are_measured_on_little_work(run, tmp_path):
    figures = tmp_path / "figures.json"
    answer = run(
        "benchmark_cohort.py",
        "--work=tiny",
        "--algorithm=fed_avg",
        "--cohort=4",
        "--num_local_steps=2",
        "--repeats=1",
        f"--output={figures}",
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    (row,) = json.loads(figures.read_text())["rows"]
    assert {"stock", "stock_sequence", "sequence", "users", "loop", "plain"} < set(
        row["median"]
    )

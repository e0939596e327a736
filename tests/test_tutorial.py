"""The tutorial, word for word: its files, its commands, and what it says of them."""

import contextlib
import io
import pathlib
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from tff_perfedavg.experiments.evaluation import metrics

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def steps_of(content):
    """A block's commands of scripts/, as words, and what else a shell has to do."""
    rest = ""
    for line in content.replace("\\\n", " ").splitlines(keepends=True):
        if line.startswith(".venv/bin/python scripts/"):
            if rest:
                yield rest
            yield shlex.split(line)[1:]
            rest = ""
        else:
            rest += line
    if rest:
        yield rest


def test_commands_and_shell_lines_are_told_apart():
    content = "cat > f <<'END'\n--a\nEND\n.venv/bin/python scripts/x.py \\\n  --b=1\n"
    assert [*steps_of(content)] == [
        "cat > f <<'END'\n--a\nEND\n",
        ["scripts/x.py", "--b=1"],
    ]


@pytest.fixture(scope="module")
def tutorial(commands, tmp_path_factory):
    """Where the tutorial was followed, and what each block of commands printed."""
    root = tmp_path_factory.mktemp("tutorial")
    (root / "scripts").symlink_to(ROOT / "scripts")
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # A link would not find the packages of the environment it leads to.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def shell(text):
        answer = subprocess.run(
            ["sh", "-e", "-c", text],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=root,
            stdin=subprocess.DEVNULL,
        )
        assert answer.returncode == 0, answer.stderr
        assert "Traceback" not in answer.stderr
        return answer.stdout

    def command(script, *arguments):
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as said,
        ):
            patch.chdir(root)
            assert commands.run(pathlib.Path(script).name, *arguments) == 0
        return said.getvalue()

    printed = []
    for kind, content in BLOCKS:
        if kind == "python":
            path = root / re.match(r"# (\S+)\n", content).group(1)
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        elif kind == "sh":
            printed.append(
                "".join(
                    shell(step) if isinstance(step, str) else command(*step)
                    for step in steps_of(content)
                )
            )
    return root, printed


@pytest.fixture
def root(tutorial):
    return tutorial[0]


def form(text):
    """Lines of a text without its numbers and its spacing."""
    lines = re.sub(r"[-+]?\d[\d.,]*", "#", text).splitlines()
    return {" ".join(line.split()) for line in lines}


@pytest.mark.slow
def test_what_it_shows_as_printed_is_printed(tutorial):
    printed = form("\n".join(tutorial[1]))
    shown = [content for kind, content in BLOCKS if not kind]
    assert len(shown) == 5
    for content in shown:
        assert form(content) <= printed


@pytest.mark.slow
def test_the_users_are_as_many_as_it_says(tutorial):
    (shown,) = (content for kind, content in BLOCKS if "seen and new" in content)
    assert {*shown.splitlines()} <= {*tutorial[1][0].splitlines()}


@pytest.mark.slow
def test_every_file_it_names_is_there(root):
    named = {*re.findall(r"mine/[\w/.-]*\w", TEXT)}
    assert {"mine/wines.tflite", "mine/results/results/fed_avg/report.html"} < named
    assert [name for name in sorted(named) if not (root / name).exists()] == []
    assert [*(root / "mine/results/results/fed_avg/report").glob("*.svg")]


@pytest.mark.slow
def test_adapting_pays_and_per_fed_avg_leads_on_seen_and_new_users(root):
    per_user = pd.concat(
        pd.read_csv(root / f"mine/results/results/{name}/evaluation.per_user.csv")
        for name in ("fed_avg", "per_fed_avg")
    )
    summary = metrics.summarize(per_user).sort_index()
    compared = metrics.compare_paired(per_user, 5)
    algorithms = "FedAvg + update", "Per-FedAvg exact"
    for users in ("seen", "new"):
        for algorithm in algorithms:
            accuracy = summary["accuracy"][users, algorithm]
            assert 0.4 < accuracy[0] < 0.6
            assert accuracy[5] > accuracy[0] + 0.3
        worse = [summary["made_worse"][users, name, 1] for name in algorithms]
        assert worse[1] < worse[0]
        assert compared["low"][(users, *algorithms)] > 0


@pytest.mark.slow
def test_the_rate_is_too_high_for_fed_avg_s_weights_and_per_fed_avg_s_are_flatter(root):
    found = pd.read_csv(
        root / "mine/results/results/fed_avg/diagnostics.csv", index_col=0
    )
    fed_avg, per_fed_avg = found["fed_avg"], found["per_fed_avg"]
    assert fed_avg["share_above_two"] == 1 > per_fed_avg["share_above_two"] > 0
    assert fed_avg["curvature_median"] > 3 * per_fed_avg["curvature_max"]
    # Its loss rises in the step, and that of Per-FedAvg falls.
    table = pd.read_csv(
        root / "mine/results/results/fed_avg/evaluation.table.csv",
        index_col=["users", "algorithm", "step"],
    )["loss"]["seen"]
    assert table["FedAvg + update", 1] > table["FedAvg + update", 0]
    assert table["Per-FedAvg exact", 1] < table["Per-FedAvg exact", 0]


@pytest.mark.slow
def test_it_leads_where_users_who_are_not_reported_choose_the_rates(root):
    table = pd.read_csv(root / "mine/sweep/sweep.table.csv").set_index("method")
    rate = table["adaptation_learning_rate"]
    assert (rate["fed_avg"].to_numpy() < rate["exact"].to_numpy()).all()
    compared = pd.read_csv(root / "mine/sweep/sweep.comparison.csv", index_col="users")
    assert compared["low"]["seen"] > 0
    assert compared["difference"]["new"] > 0


@pytest.mark.slow
def test_a_device_gives_each_user_what_the_evaluation_did(tutorial, root):
    table = pd.read_csv(
        root / "mine/results/results/fed_avg/evaluation.table.csv",
        index_col=["users", "algorithm", "step"],
    )["accuracy"]
    on_device = re.findall(r"^Per-FedAvg exact 0 +([\d.]+)", tutorial[1][-1], re.M)
    for users, accuracy in zip(("seen", "new"), on_device, strict=True):
        expected = 100 * table[users, "Per-FedAvg exact", 0]
        # Thirty rows of each of 40 users: one row is less than 0.1 %.
        assert abs(float(accuracy) - expected) < 0.2

"""Training on a fleet: who completes, what is spent, and going on to the same bits."""

import dataclasses
import json
import pathlib

import numpy as np
import pandas as pd
import pytest

import tff_perfedavg as pfa
from tests.needs import slow_but
from tff_perfedavg import errors
from tff_perfedavg.experiments.assemble import fleet as assemble
from tff_perfedavg.experiments.assemble import population
from tff_perfedavg.experiments.files import fleet_rows, trained_model
from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.files.sources import check_sources
from tff_perfedavg.experiments.report import fleet_section, run_report
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.experiments.settings.fleet_settings import FleetSettings
from tff_perfedavg.fleet import schedule, traces
from tff_perfedavg.fleet.devices import find_spec

pytestmark = pytest.mark.usefixtures("shared_builds")

MIXED_FILE = pathlib.Path(pfa.__file__).parent / "fleet" / "mixed.toml"
WORK_FILE = pathlib.Path(__file__).parent / "data" / "fleet.work.json"
WORK = json.loads(WORK_FILE.read_text())
MIXED = (
    "--fleet=mixed",
    "--over_selection=1.5",
    "--round_deadline=60",
    "--min_reports=2",
    "--device_conditions=idle",
)
# Whatever the form, and whether blocks are trained one by one or side by side.
FORMS = ("users", "blocks_loop", "blocks_vectorized")


@pytest.fixture(scope="module")
def work():
    return WORK_FILE


@pytest.fixture
def train(commands, tmp_path, work):
    """Trains a run of small work under a name; its paths."""

    def run(name, *arguments, rounds=4):
        fleet = [f"--fleet_work={work}"] * any("--fleet=" in a for a in arguments)
        code = commands.run(
            "train",
            f"--experiment_name={name}",
            f"--root_output_dir={tmp_path}",
            "--model=logistic_regression",
            "--clients_per_round=4",
            "--num_local_steps=2",
            f"--total_rounds={rounds}",
            *fleet,
            *arguments,
        )
        assert code == 0
        return RunPaths(tmp_path, name)

    return run


def weights_of(run):
    return b"".join(w.tobytes() for w in trained_model.load(run.model)[0])


@pytest.mark.parametrize("form", slow_but({"blocks_loop"}, FORMS))
def test_an_ideal_fleet_gives_the_run_without_a_fleet(train, form):
    form = f"--client_form={form}"
    without = train("without", form)
    ideal = train("ideal", form, "--fleet=ideal")
    assert weights_of(ideal) == weights_of(without)
    found, expected = (pd.read_csv(run.metrics) for run in (ideal, without))
    assert found[expected.columns].equals(expected)
    spent = [c for c in found.columns if c not in expected.columns]
    assert spent == [
        "fleet_hours",
        *("fleet_bytes_down", "fleet_bytes_up"),
        *("fleet_joules_low", "fleet_joules_mid", "fleet_joules_high"),
    ]
    # Four rounds of 0.2 + 2 * 1.5 s of training, and 0.0032 s at each end.
    np.testing.assert_allclose(found["fleet_hours"].iloc[-1] * 3600, 4 * 3.2064)
    assert found["fleet_bytes_up"].tolist() == [160_000.0 * n for n in (1, 2, 3, 4)]


def test_phones_with_little_time_do_some_of_their_steps(train):
    """A deadline that leaves slow phones time for one step of two."""
    run = train(
        "partial",
        "--fleet=mixed",
        "--over_selection=1.5",
        "--round_deadline=10",
        "--min_reports=1",
        "--late_reports=partial",
    )
    tasks = pd.read_csv(run.fleet_tasks)
    taken = tasks[tasks["outcome"] == "taken"]
    assert {*taken["steps"]} == {1, 2}
    speeds = taken.groupby("steps")["compute_s"]
    assert (taken["end_s"] - taken["begin_s"]).max() <= 10
    assert speeds.count().min() > 1
    whole = train("whole", "--fleet=mixed", "--over_selection=1.5")
    assert weights_of(run) != weights_of(whole)


def test_a_fleet_s_files_tell_what_the_metrics_do(train):
    run = train("mixed", *MIXED, "--rounds_per_evaluation=2", rounds=6)
    metrics = pd.read_csv(run.metrics)
    tasks, rounds = pd.read_csv(run.fleet_tasks), pd.read_csv(run.fleet_rounds)
    last = metrics.iloc[-1]
    assert last["fleet_bytes_down"] == tasks["bytes_down"].sum() == 40_000 * len(tasks)
    assert last["fleet_joules_mid"] == pytest.approx(tasks["joules_mid"].sum())
    assert last["fleet_hours"] * 3600 == pytest.approx(rounds["end_s"].iloc[-1])
    assert (tasks["outcome"] != "taken").any()
    # Users who were taken are those who trained.
    taken = tasks[tasks["outcome"] == "taken"].groupby("step").size()
    done = metrics["num_users_taken"] + metrics["num_users_excluded"]
    assert taken.tolist() == done.tolist()
    evaluations = pd.read_csv(run.evaluations).groupby("round_num").first()
    assert evaluations["fleet_hours"].tolist() == [
        0.0,
        *metrics["fleet_hours"].iloc[[1, 3, 5]],
    ]


def test_a_report_tells_what_the_fleet_spent_and_whom_it_served(train, commands):
    run = train("told", *MIXED, "--rounds_per_evaluation=2", rounds=6)
    given = (f"--root_output_dir={run.root}",)
    assert (
        commands.run(
            "evaluate", *given, "--nobaselines", f"--experiment_name={run.name}"
        )
        == 0
    )
    assert commands.run("report", "--run=told", *given) == 0
    page = run.report.read_text()
    tasks = pd.read_csv(run.fleet_tasks)
    taken = (tasks["outcome"] == "taken").sum()
    assert f"Of {len(tasks)} tasks {taken} were taken" in page
    assert "device classes of the fleet" in page
    for name in ("hours", "bytes_up", "joules_mid"):
        assert (run.results / "report" / f"learning_by_fleet_{name}.png").is_file()
    for name in ("fleet_day_0", "fleet_batteries_0", "fleet_timeline_0"):
        assert (run.results / "report" / f"{name}.png").is_file()
    (record,) = run_report.read_runs([run])
    table = fleet_section.classes_table(record.fleet, record.per_user)
    # Who had no task is not left out.
    assert [*table.index] == [device.name for device in find_spec("mixed").devices]
    assert table["tasks"].sum() == len(tasks)
    assert (table.loc[table["tasks"] == 0, "reports / share"] == 0).all()
    table = table[table["tasks"] > 0]
    outcomes = table[[f"{o} %" for o in ("taken", "late", "dropped", "abandoned")]]
    np.testing.assert_allclose(outcomes.sum(axis=1), 100)
    # Reckoned by hand for one class.
    first = table.index[0]
    mine = tasks[tasks["device"] == first]
    store = pfa.UserStore.open(population.population_path(Experiment(), run.root))
    fleet = assemble.build_fleet(FleetSettings("mixed", "-"), len(store.users), 0)
    devices = fleet.records["device"][store.training_users]
    reports = tasks["device"][tasks["outcome"] == "taken"] == first
    share = (devices == fleet.spec.classes.index(first)).mean()
    assert table.loc[first, "reports / share"] == pytest.approx(reports.mean() / share)
    assert table.loc[first, "J a task"] == pytest.approx(mine["joules_mid"].mean())
    # All within the first day, so that a user's day is all of its tasks.
    capacity = {d.name: 3600 * d.battery_wh.mid for d in find_spec("mixed").devices}
    shares = mine.groupby("user")["joules_mid"].sum() / capacity[first]
    assert table.loc[first, "its largest"] == pytest.approx(100 * shares.max())
    assert table.loc[first, "battery a user-day %"] == pytest.approx(
        100 * shares.median()
    )


def test_the_last_round_is_read_as_it_was_written(train):
    run = train("read", *MIXED, rounds=3)
    tasks, rounds = pd.read_csv(run.fleet_tasks), pd.read_csv(run.fleet_rounds)
    classes = [device.name for device in find_spec("mixed").devices]
    step = fleet_rows.last_step(tasks, rounds, classes)
    pd.testing.assert_frame_equal(
        fleet_rows.tasks_table([step], classes),
        tasks[tasks["step"] == tasks["step"].max()].fillna("").reset_index(drop=True),
        check_dtype=False,
    )
    assert fleet_rows.rounds_table([step]).loc[0].tolist() == pytest.approx(
        rounds.iloc[-1].tolist()
    )


def test_targets_are_told_when_they_are_first_met():
    def curve(values, hours):
        return pd.DataFrame(
            {
                "round_num": [0, 10, 20, 30],
                "users": "new",
                "step": 1,
                "accuracy": values,
                "fleet_hours": hours,
                "fleet_bytes_up": [0.0, 1e6, 2e6, 3e6],
                "fleet_joules_mid": [0.0, 1e3, 2e3, 3e3],
            }
        )

    curves = {
        "slow": curve([0.1, 0.5, 0.725, 0.8], [0, 4, 8, 12]),
        # It reaches 95 % of 0.8, and falls again.
        "fast": curve([0.1, 0.77, 0.7, 0.75], [0, 1, 2, 3]),
    }
    table = fleet_section.targets_table(curves)
    found = table.set_index(table.index.map(lambda key: (key[0][:4], key[1])))
    assert found.loc[[("72.0", "slow")], "hours"].item() == 8
    assert found.loc[[("76.0", "slow")]].to_numpy().tolist() == [[30, 12, 3, 3]]
    assert found.loc[[("76.0", "fast")]].to_numpy().tolist() == [[10, 1, 1, 1]]
    assert found.loc[[("79.2", "fast")]].isna().all(axis=None)


def test_a_run_on_a_fleet_goes_on_to_the_same_bits(train):
    limits = (*MIXED, "--battery_limit=0.05")
    whole = train("whole", *limits, rounds=6)
    train("halved", *limits, rounds=3)
    halved = train("halved", *limits, rounds=6)
    assert weights_of(halved) == weights_of(whole)
    for name in ("metrics", "fleet_tasks", "fleet_rounds"):
        first, second = (getattr(run, name).read_bytes() for run in (whole, halved))
        assert first == second, name


def test_what_a_task_costs_is_measured_once_for_a_run(train, work, tmp_path):
    """A resumed run goes on with what was measured, whatever is measured now."""
    mine = tmp_path / "work.json"
    mine.write_text(json.dumps(WORK))
    arguments = ("--fleet=ideal", f"--fleet_work={mine}")
    train("run", *arguments, rounds=2)
    mine.write_text(json.dumps({**WORK, "step_s": 9.0}))
    run = train("run", *arguments, rounds=4)
    hours = pd.read_csv(run.metrics)["fleet_hours"]
    np.testing.assert_allclose(np.diff(hours), hours[0])


def test_compressed_updates_take_the_bits_that_are_given(train):
    run = train("compressed", "--fleet=ideal", "--upload_bits=3")
    found = pd.read_csv(run.metrics)
    # Four phones, 10,000 weights each.
    assert found["fleet_bytes_down"].iloc[0] == 4 * 40_000
    assert found["fleet_bytes_up"].iloc[0] == 4 * 3750


def test_a_fleet_s_description_that_has_changed_is_refused(train, commands, tmp_path):
    directory = tmp_path / "mine"
    directory.mkdir()
    mine = directory / "fleet.toml"
    mine.write_text(MIXED_FILE.read_text())
    run = train("own", f"--fleet={directory}", rounds=1)
    mine.write_text(mine.read_text().replace("value = 0.304", "value = 0.4"))
    with pytest.raises(errors.ConfigError, match=r"fleet\.toml is not what it was"):
        check_sources(trained_model.load(run.model)[1], run.model, run.root)


@pytest.fixture
def schedule_of_store(commands, tmp_path):
    """Simulates rounds of the users that train, without training; its file."""

    def simulate(*users, rounds=4):
        if not users:
            population.build_population(Experiment(), tmp_path)
            store = population.population_path(Experiment(), tmp_path)
            users = (f"--store={store}",)
        given = (*MIXED, "--clients_per_round=4", f"--output_dir={tmp_path / 'made'}")
        given += (f"--fleet_work={WORK_FILE}", f"--total_rounds={rounds}")
        given += ("--num_local_steps=2", *users)
        assert commands.run("simulate_fleet", *given) == 0
        return tmp_path / "made" / "schedule.npz"

    return simulate


def test_a_schedule_replayed_gives_the_same_weights_and_books(train, schedule_of_store):
    simulated = train("simulated_in_training", *MIXED)
    path = schedule_of_store()
    given = ("--fleet=mixed", f"--fleet_schedule={path}")
    replayed = train("replayed", *given)
    # Stopped and gone on with, too.
    train("halved", *given, rounds=2)
    halved = train("halved", *given)
    for run in (replayed, halved):
        assert weights_of(run) == weights_of(simulated)
        for name in ("metrics", "fleet_tasks", "fleet_rounds"):
            first, second = (
                getattr(one, name).read_bytes() for one in (run, simulated)
            )
            assert first == second, name
    (step,) = schedule.Schedule.load(path).steps[:1]
    changed = step._replace(tasks=step.tasks[::-1].copy())
    schedule.Schedule(("low", "mid", "high"), (changed,)).save(path)
    with pytest.raises(errors.ConfigError, match=r"schedule\.npz is not what it was"):
        check_sources(
            trained_model.load(replayed.model)[1], replayed.model, replayed.root
        )


@pytest.mark.parametrize(
    ("simulated", "trained", "said"),
    [
        ((), ("--total_rounds=9",), "has no round 8; it has 4"),
        ((), ("--clients_per_round=3",), "rounds of 4 reports, and clients_per_round"),
        ((), ("--base_random_seed=7",), "other phones than fleet mixed"),
        ((), ("--fleet=ideal",), "other phones than fleet ideal"),
        ((), ("--num_local_steps=3",), "have steps 2, and those of the run 3"),
        ((), ("--round_deadline=9",), "round_deadline is 9.0, but rounds are those of"),
        (("--num_users=26",), (), "who is none of the 20 that train"),
    ],
)
def test_a_schedule_of_another_run_is_refused(
    commands, capsys, tmp_path, schedule_of_store, simulated, trained, said
):
    # Ten times as many rounds, so that new users have tasks, too.
    path = schedule_of_store(*simulated, rounds=40 if simulated else 4)
    code = commands.run(
        "train",
        "--experiment_name=refused",
        f"--root_output_dir={tmp_path}",
        "--model=logistic_regression",
        "--fleet=mixed",
        f"--fleet_schedule={path}",
        f"--fleet_work={WORK_FILE}",
        "--clients_per_round=4",
        "--num_local_steps=2",
        "--total_rounds=4",
        *trained,
    )
    assert code == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_of_another_run_says_nothing_of_a_task(train, commands, capsys):
    run = train("exported", "--variant=first_order", rounds=1)
    root, path = f"--root_output_dir={run.root}", run.root / "first_order.tflite"
    given = (f"--checkpoint={run.model}", "--max_local_steps=8", f"--output={path}")
    assert commands.run("export_tflite", *given) == 0, capsys.readouterr().err
    own = ("--variant=first_order", "--fleet=ideal", f"--fleet_work={path}")
    for changed, said in (
        ("--variant=exact", "a file of method first_order; the run's is exact"),
        ("--batch_size=30", "whose batches hold 20 rows; those of the run hold 30"),
        ("--model=mlp", "whose clients are sent 2,600 bytes; those of this run"),
    ):
        few = ("--clients_per_round=4", "--num_local_steps=2", "--total_rounds=1")
        model = ("--experiment_name=other", "--model=logistic_regression")
        code = commands.run("train", root, *model, *few, *own, changed)
        assert code == 1, changed
        assert said in " ".join(capsys.readouterr().err.split())
    timed = train("timed", *own)
    assert (pd.read_csv(timed.fleet_tasks)["bytes_up"] == 2600).all()


def test_a_fleet_s_trace_tells_when_its_phones_are_on(tmp_path):
    (tmp_path / "fleet.toml").write_text(MIXED_FILE.read_text())
    starts, ends = [0, 50, 200], [100, 60, 300]
    trace = traces.Trace(np.arange(4), starts, ends, 1000, "here")
    trace.save(tmp_path / "trace.npz")
    settings = FleetSettings(fleet=str(tmp_path), fleet_work="-")
    fleet = assemble.build_fleet(settings, 3, seed=0)
    for time, expected in ((10, [1, 0, 0]), (55, [1, 1, 0]), (250, [0, 0, 1])):
        found = fleet.availability(()).is_on(np.arange(3), np.full(3, float(time)))
        assert found.astype(int).tolist() == expected
    settings = dataclasses.replace(settings, device_conditions="idle")
    with pytest.raises(errors.ConfigError, match=r"trace\.npz says when phones are on"):
        assemble.build_fleet(settings, 3, seed=0)


def test_classes_may_go_by_the_label_that_users_hold_most_of(train, tmp_path):
    run = train("tied", "--fleet=mixed", "--device_assignment=by_label", rounds=8)
    tasks = pd.read_csv(run.fleet_tasks)
    store = pfa.UserStore.open(population.population_path(Experiment(), tmp_path))
    most = [np.bincount(store.adaptation(u).y).argmax() for u in tasks["user"]]
    ranges = pd.Series(most).groupby(tasks["device"]).agg(["min", "max"])
    assert ranges.loc["low", "max"] <= ranges.loc["mid", "min"]
    assert ranges.loc["mid", "max"] <= ranges.loc["high", "min"]


def test_classes_cannot_go_by_labels_that_are_no_classes(commands, capsys, tmp_path):
    given = ("--dataset=sinusoid", "--model=mlp_regressor", "--fleet=mixed")
    given += (f"--fleet_work={WORK_FILE}",)
    given += (f"--root_output_dir={tmp_path}", "--experiment_name=tasks")
    assert commands.run("train", *given, "--device_assignment=by_label") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "are no classes; give by_rows" in said


def test_classes_may_go_by_the_rows_that_users_hold(train, tmp_path):
    run = train(
        "tied",
        "--fleet=mixed",
        "--device_assignment=by_rows",
        rounds=8,
    )
    tasks = pd.read_csv(run.fleet_tasks)
    store = population.population_path(Experiment(), tmp_path)
    bounds = np.asarray(pfa.UserStore.open(store).users)
    rows = (bounds[:, 1] - bounds[:, 0])[tasks["user"]]
    means = pd.Series(rows).groupby(tasks["device"]).mean()
    assert means["low"] < means["mid"] <= means["high"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fleet": "none", "over_selection": 1.3}, "there is no fleet"),
        (
            {"aggregator": "dp_fixed", "clipping_norm": 1.0, "noise_multiplier": 1.0},
            "no epsilon would be right",
        ),
        ({"aggregator": "compression"}, "say by upload_bits"),
        ({"upload_bits": 33.0}, "upload_bits is 33; it must be above 0, at most 32"),
        ({"device_conditions": "wifi"}, "device_conditions is 'wifi'"),
    ],
)
def test_experiments_that_no_fleet_can_run_are_refused(settings, said):
    with pytest.raises(errors.ConfigError, match=said):
        Experiment(**{"fleet": "mixed", **settings})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--over_selection=9",), "chooses 36 devices"),
        (("--round_deadline=1",), "which nobody can meet"),
        (("--fleet_work=",), "fleet_work is missing"),
    ],
)
def test_a_run_that_its_fleet_cannot_do_is_refused_before_it_begins(
    commands, capsys, tmp_path, work, arguments, said
):
    code = commands.run(
        "train",
        "--experiment_name=refused",
        "--fleet=mixed",
        f"--fleet_work={work}",
        "--clients_per_round=4",
        f"--root_output_dir={tmp_path}",
        *arguments,
    )
    assert code == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not [*tmp_path.glob("checkpoints/*/*.ckpt")]


def test_a_mark_for_each_target_that_was_met_at_its_cost():
    from tff_perfedavg.experiments.report import fleet_figures

    names = ["target accuracy", "method", "rounds", "hours", "MB up", "kJ"]
    names += ["least hours", "most hours", "seeds that met it", "seeds"]
    rows = [
        (0.8, "fed_avg", 5, 1.0, 30.0, 2.0, 0.5, 4.0, 5, 5),
        (0.9, "fed_avg", 9, 2.0, 60.0, 4.0, 2.0, 2.0, 2, 5),
        (0.8, "exact", 5, 3.0, 20.0, 1.0, 1.0, 3.0, 3, 5),
        (0.9, "exact", *[np.nan] * 6, 0, 5),
    ]
    table = pd.DataFrame(rows, columns=names)
    for given in (table, table.set_index(names[:2])):
        figure = fleet_figures.targets(given)
        drawn = [
            {
                (x, round(y), line.get_markerfacecolor() == "none")
                for line in panel.lines
                for x, y in zip(*line.get_data(), strict=True)
            }
            for panel in figure.axes
        ]
        # Rows from above: FedAvg, exact; hollow where two of five seeds met it.
        assert drawn == [
            {(3600.0, 0, False), (7200.0, 0, True), (10800.0, 1, False)},
            {(30.0, 0, False), (60.0, 0, True), (20.0, 1, False)},
            {(2000.0, 0, False), (4000.0, 0, True), (1000.0, 1, False)},
        ]
        ranges = figure.axes[0].collections
        ends = {tuple(path[:, 0]) for one in ranges for path in one.get_segments()}
        assert ends == {(1800.0, 14400.0), (7200.0, 7200.0), (3600.0, 10800.0)}
        ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert ticks == ["fed_avg", "exact"]


@pytest.mark.slow
def test_a_sweep_tells_what_targets_cost_and_how_classes_fare(
    commands, capsys, tmp_path
):
    for method, steps in (("fed_avg", 1.0), ("first_order", 3.0)):
        costs = json.dumps({**WORK, "step_s": steps})
        (tmp_path / f"{method}.json").write_text(costs)
    root = tmp_path / "sweep"
    given = (
        f"--root_output_dir={root}",
        *("--fleet=mixed", "--over_selection=1.5", "--device_assignment=by_rows"),
        *("--model=logistic_regression", "--clients_per_round=4"),
        *("--num_local_steps=2", "--total_rounds=4", "--rounds_per_evaluation=2"),
        *("--grid=method=fed_avg,first_order", "--grid=base_random_seed=0,1"),
        *("--nobaselines", "--adaptation_steps=1", "--targets=0.05,2"),
    )
    said = f"--fleet_work={tmp_path}/fed_avg.json"
    assert commands.run("sweep", *given, said) == 1
    assert "fed_avg.json' for all methods of the grid" in capsys.readouterr().err
    assert (
        commands.run("sweep", *given, f"--fleet_work={tmp_path}/{{method}}.json") == 0
    )
    targets = pd.read_csv(root / "sweep.fleet_targets.csv", index_col=[0, 1])
    # All meet the first before any training, and none the second.
    met = targets.loc[0.05]
    assert (met["seeds that met it"] == 2).all()
    assert (met[["rounds", "hours", "kJ"]] == 0).all(axis=None)
    assert (targets.loc[2.0, "seeds that met it"] == 0).all()
    assert targets.loc[2.0, "hours"].isna().all()
    assert (root / "sweep.fleet_targets.png").read_bytes().startswith(b"\x89PNG")
    classes = pd.read_csv(root / "sweep.fleet_classes.csv", index_col=[0, 1])
    runs = [RunPaths(root, f"first_order-base_random_seed{seed}") for seed in (0, 1)]
    tasks = pd.concat(pd.read_csv(run.fleet_tasks) for run in runs)
    taken = tasks[tasks["outcome"] == "taken"]["device"].value_counts()
    for name, mine in tasks.groupby("device"):
        row = classes.loc[("first_order", name)]
        assert row["J a report"] == pytest.approx(
            mine["joules_mid"].sum() / max(taken.get(name, 0), 1), rel=1e-5
        )
    # A step three times as long takes phones three times as long.
    seconds = [
        pd.read_csv(RunPaths(root, f"{method}-base_random_seed0").fleet_tasks)
        .groupby("user")["compute_s"]
        .max()
        for method in ("fed_avg", "first_order")
    ]
    both = pd.concat(seconds, axis=1, join="inner").to_numpy()
    assert len(both)
    np.testing.assert_allclose(both[:, 1] / both[:, 0], 6.2 / 2.2)

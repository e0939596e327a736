"""The command that simulates a fleet, and the timing of a file that it takes."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import tff_perfedavg as pfa
from scripts import benchmark_fleet
from tests.commands import ROOT
from tff_perfedavg import errors
from tff_perfedavg.commands import simulate_fleet
from tff_perfedavg.experiments.assemble import fleet as assemble
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.fleet_settings import FleetSettings
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.devices import find_spec
from tff_perfedavg.fleet.schedule import Schedule
from tff_perfedavg.ondevice.runner import OnDeviceModel
from tff_perfedavg.ondevice.timing import time_meta_update

WORK = {
    "steps": 10,
    "fixed_s": 0.2,
    "step_s": 0.3,
    "bytes_down": 1_700_000,
    "bytes_up": 1_700_000,
}
SMALL = ("--num_users=2000", "--clients_per_round=20", "--total_rounds=8")


@pytest.fixture
def work(tmp_path):
    path = tmp_path / "work.json"
    path.write_text(json.dumps(WORK))
    return path


def run(*arguments):
    argv = ["simulate_fleet.py", *map(str, arguments)]
    return command.execute(argv, simulate_fleet.main, simulate_fleet.define)


def test_it_needs_no_framework_and_writes_what_it_says(tmp_path, work):
    """In a process of its own, which tells what it has loaded."""
    program = (
        "import sys; from scripts import simulate_fleet as s; "
        "from tff_perfedavg.experiments.settings import command; "
        "code = command.execute(sys.argv, s.main, s.define); "
        "assert not {'tensorflow', 'tensorflow_federated', 'jax'} & {*sys.modules}; "
        "sys.exit(code)"
    )
    others = "over_selection=1.3 round_deadline=60 min_reports=15"
    said = subprocess.run(
        [
            *(sys.executable, "-c", program, *SMALL),
            *("--over_selection=1.5", f"--fleet_work={work}"),
            *(f"--compare={others}", f"--output_dir={tmp_path / 'out'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "8 rounds of the fleet mixed" in said
    assert others in said
    out = tmp_path / "out"
    table = pd.read_csv(out / "fleet.protocols.csv", index_col="protocol")
    assert [*table.index] == ["as given", others]
    tasks, rounds = (
        pd.read_csv(out / f"fleet.{name}.csv") for name in ("tasks", "rounds")
    )
    assert len(tasks) == 8 * 30
    assert rounds["taken"].tolist() == [20] * 8
    # Files and table tell the same.
    np.testing.assert_allclose(table["GB down"].iloc[0], 8 * 30 * 1.7e-3)
    np.testing.assert_allclose(rounds["joules_mid"].sum(), tasks["joules_mid"].sum())
    assert table["hours"].iloc[0] == pytest.approx(rounds["end_s"].max() / 3600)
    schedule = Schedule.load(out / "schedule.npz")
    assert schedule.classes == ("low", "mid", "high")
    assert (schedule.tasks["user"] == tasks["user"]).all()
    assert Work.load(out / "fleet.work.json") == Work(**WORK)
    assert (out / "fleet.timeline.png").read_bytes()[:4] == b"\x89PNG"


def test_hours_tell_who_is_on_and_what_rounds_come_to(capsys, tmp_path, work):
    out = tmp_path / "out"
    given = ("--num_users=20000", "--clients_per_round=20", "--rounds_an_hour=3")
    asked = ("--device_conditions=idle,unmetered", f"--fleet_work={work}")
    assert run(*given, *asked, f"--output_dir={out}") == 0
    assert "of 20,000 users of the fleet mixed" in capsys.readouterr().out
    table = pd.read_csv(out / "fleet.hours.csv", index_col="hour, UTC")
    assert [*table.index] == [*range(24)]
    # Every phone's chance, by its zone, from the description alone.
    spec = find_spec("mixed")
    on = [
        sum(
            zone.share
            * spec.conditions["idle"].chance(np.array([hour + 0.5 + zone.utc_hours]))
            * spec.conditions["unmetered"].chance(
                np.array([hour + 0.5 + zone.utc_hours])
            )
            for zone in spec.zones
        ).item()
        for hour in range(24)
    ]
    # Windows of two hours smooth it; 10,000 users are asked: five standard errors.
    np.testing.assert_allclose(table["on %"] / 100, on, atol=0.025 + 0.005)
    np.testing.assert_allclose(table["million on"] * 1e6, table["on %"] * 200)
    # All 20 of 20 are taken, whatever a round takes.
    rounds = table["rounds an hour"] / 3600
    np.testing.assert_allclose(table["updates/s"], 20 * rounds)
    # What was dropped was chosen again: more goes out than comes in.
    assert (table["Gbit/s out"] * 1e9 / 8 / 1.7e6 >= 20 * rounds * (1 - 1e-9)).all()
    assert (table["Gbit/s in"] <= table["Gbit/s out"] * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "fleet_work is missing"),
        (("--compare=speed=1",), "setting of a protocol is 'speed'; known: over_sel"),
        (("--compare=over_selection",), "'over_selection' gives over_selection no fl"),
        (("--compare=min_reports=few",), "'min_reports=few' gives min_reports no int"),
        (("--compare=min_reports=30",), "Protocol 'min_reports=30': min_reports is 30"),
        (("--num_users=10",), "chooses 20 devices.*only 10 users; lower clients_per_r"),
        (("--late_reports=partial",), "late_reports is 'partial'.*give round_deadline"),
        (("--rounds_an_hour=1", "--compare=over_selection=2"), "are both given"),
        (("--round_deadline=1",), "round_deadline is 1, which nobody can meet"),
        (("--fleet=nowhere",), "no file nowhere/fleet.toml"),
        (("--fleet=none",), "but there is no fleet; give one"),
        (("--device_conditions=wifi",), "device_conditions is 'wifi'; known: idle"),
        (("--device_assignment=by_rows",), "goes by users' data, and there are none"),
    ],
)
def test_what_cannot_be_simulated_is_told_in_a_sentence(
    capsys, tmp_path, work, arguments, said
):
    given = (f"--fleet_work={work}",) if arguments else ()
    assert run(*SMALL, *given, *arguments, f"--output_dir={tmp_path / 'out'}") == 1
    found = " ".join(capsys.readouterr().err.split())
    assert re.search(said, found), found
    assert not (tmp_path / "out").exists()


def test_an_exported_file_is_measured_at_two_numbers_of_steps(tmp_path):
    model = pfa.models.mlp((8, 8), 10)
    path = tmp_path / "model.tflite"
    config = pfa.ondevice.ExportConfig(20, max_local_steps=8)
    pfa.export_tflite(model, model.init(0), path, config)
    found = time_meta_update(OnDeviceModel(path), repeats=5)
    size = sum(w.nbytes for w in model.init(0))
    assert (found.steps, found.bytes_down, found.bytes_up) == (8, size, size)
    # Forty thousand multiplications a row take no less than a microsecond.
    assert 1e-6 < found.step_s < 1
    assert 0 <= found.fixed_s < 1
    settings = FleetSettings(fleet="ideal", fleet_work=str(path))
    assert assemble.build_work(settings, num_steps=3).steps == 3
    table = tmp_path / "table.csv"
    table.write_text("class,fixed_ms,step_ms\ndevice,1,2\n")
    settings = FleetSettings("ideal", str(path), device_table=str(table))
    assert assemble.build_work(settings).by_class == {"device": (0.001, 0.002)}


def test_a_file_without_two_numbers_of_steps_is_refused(tmp_path):
    model = pfa.models.logistic_regression((4,), 2)
    path = tmp_path / "model.tflite"
    config = pfa.ondevice.ExportConfig(4, max_local_steps=1)
    pfa.export_tflite(model, model.init(0), path, config)
    with pytest.raises(errors.ModelError, match="max_local_steps of at least 2"):
        time_meta_update(OnDeviceModel(path))


def test_settings_of_a_fleet_without_one_are_refused():
    with pytest.raises(errors.ConfigError, match=r"over_selection is 1.3, but there"):
        FleetSettings(over_selection=1.3)


def test_the_benchmark_measures_small_fleets(capsys, tmp_path):
    output = tmp_path / "benchmark.json"
    argv = ["benchmark_fleet.py", "--num_users=3000", "--clients_per_round=10"]
    argv += ["--total_rounds=3", "--trained_rounds=0", "--added_updates=0"]
    argv.append(f"--output={output}")
    assert command.execute(argv, benchmark_fleet.main, benchmark_fleet.define) == 0
    results = json.loads(output.read_text())
    assert results["training"] == []
    found = results["fleets"]
    conditions = ["", "idle", "idle,charging,unmetered"]
    assert [row["conditions"] for row in found] == conditions
    assert all(row["fleet_mb"] == 3000 * 16 / 1e6 for row in found)
    assert capsys.readouterr().out.count("3,000") == 3

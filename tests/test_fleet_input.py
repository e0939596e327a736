"""Descriptions of fleets, files, and what is refused with a sentence."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fleets
from tff_perfedavg import errors
from tff_perfedavg.experiments.files import fleet_rows
from tff_perfedavg.fleet import availability, devices, draws, population, schedule
from tff_perfedavg.fleet import simulator as simulator_module
from tff_perfedavg.fleet.cost import Costs, Work, read_device_table
from tff_perfedavg.fleet.names import PARTIAL, PAUSE
from tff_perfedavg.fleet.protocol import SyncRound
from tff_perfedavg.fleet.simulator import Simulator

MIXED = (pathlib.Path(devices.__file__).parent / "mixed.toml").read_text()


def written(tmp_path, text):
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def refused(tmp_path, text):
    with pytest.raises(errors.ConfigError) as e:
        devices.read_spec(written(tmp_path, text))
    assert str(tmp_path / "fleet.toml") in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("name", ["ideal", "mixed"])
def test_every_number_of_the_fleets_that_come_along_has_a_source(name):
    spec = devices.find_spec(name)
    text = (pathlib.Path(devices.__file__).parent / f"{name}.toml").read_text()
    numbers = re.findall(r"^\w+ = ", text, re.MULTILINE)
    names = re.findall(r"^name = ", text, re.MULTILINE)
    assert len(spec.sources) == len(numbers) - len(names) > 15
    assert all(spec.sources.values())
    assert sum(device.share for device in spec.devices) == pytest.approx(1)


def test_a_copy_in_a_directory_is_the_same_fleet(tmp_path):
    written(tmp_path, MIXED)
    assert devices.find_spec(str(tmp_path)) == devices.find_spec("mixed")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value = 0.109", "value = -0.109", "device low, speed is -0.109.*above 0"),
        ("value = 0.109", 'value = "fast"', "device low, speed, value is 'fast'"),
        ("value = 0.109", "value = nan", "device low, speed, value is nan"),
        ("share = { value = 0.3", "share = { value = 0.4", "in sum 1.1.*sum to 1"),
        ("share = { value = 0.3", "share = { value = 0.0", "share is 0.*above 0"),
        ('name = "mid"', 'name = "low"', "two classes have one name"),
        ("low = 1.0, mid = 2.0", "low = 3.0, mid = 2.0", "low <= mid <= high"),
        ("peak_hour = { value = 3", "peak_hour = { value = 25", "idle: peak_hour"),
        ("utc_hours = { value = -5", "utc_hours = { value = -5.1", "whole quarters"),
        ("[charging]", "[chargin]", "chargin is unknown; known: charging"),
        ('source = "assumption" }', 'source = " " }', "say where it is from"),
    ],
)
def test_what_a_description_gets_wrong_is_told_with_its_place(tmp_path, old, new, said):
    assert MIXED.count(old) >= 1
    assert re.search(said, refused(tmp_path, MIXED.replace(old, new, 1)))


def test_missing_numbers_and_bare_ones_are_refused(tmp_path):
    bare = re.sub(r"speed = \{.*?\}", "speed = 1.0", MIXED, count=1)
    assert "device low, speed is 1.0; give { value = ..., source" in refused(
        tmp_path, bare
    )
    missing = re.sub(r"speed = \{.*?\}\n", "", MIXED, count=1)
    assert "device low, speed is missing" in refused(tmp_path, missing)
    assert "could not be read as TOML" in refused(tmp_path, MIXED[:500])
    assert "device is missing" in refused(tmp_path, 'name = "x"')
    rest = 'name = "x"\ndrop_outs_per_hour = 0\n'
    said = refused(tmp_path, rest + 'device = ["low"]\nzone = []')
    assert "device 0 is 'low'; give a table [[device]]" in said
    _, device, *_ = MIXED.split("[[device]]")
    said = refused(tmp_path, f"zone = 3\n{rest}[[device]]{device}")
    assert "zone is 3; give each as a table [[zone]]" in said


def test_a_fleet_that_is_not_there_is_told(tmp_path):
    with pytest.raises(errors.ConfigError, match="Give ideal, mixed, or a directory"):
        devices.find_spec(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"goal": 0}, "goal is 0"),
        ({"over_selection": 0.9}, "over_selection is 0.9"),
        ({"deadline_s": 0}, "deadline_s is 0"),
        (
            {"min_reports": 6},
            "min_reports is 6; it must be from 1 to SyncRound.goal, 5",
        ),
        ({"late": "never"}, "late is 'never'; known: drop, partial"),
        ({"leaving": "stay"}, "leaving is 'stay'; known: abort, pause"),
        ({"needs": ("wifi",)}, "needs is 'wifi'; known: idle, charging, unmetered"),
        ({"late": PARTIAL}, "no deadline"),
        ({"most_battery": 0}, "most_battery is 0"),
    ],
)
def test_protocols_out_of_range_are_refused(changes, said):
    with pytest.raises(errors.ConfigError, match=said):
        SyncRound(**{"goal": 5, **changes})


def test_selections_are_rounded_as_people_do():
    assert SyncRound(100, 1.1).num_selected == 110
    assert SyncRound(10, 1.25).num_selected == 13


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step_s": 0.0}, "time of the step is 0"),
        ({"step_s": float("nan")}, "time of the step is nan"),
        ({"fixed_s": -1.0}, "time of the fixed part is -1"),
        ({"bytes_up": 0}, "bytes_up is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"by_class": {"phone": (0.0, -1.0)}}, r"by_class\['phone'\]"),
    ],
)
def test_missing_cost_is_an_error_and_not_zero(changes, said):
    with pytest.raises(errors.ConfigError, match=said):
        dataclasses.replace(fleets.WORK, **changes)


def test_work_is_read_as_it_was_written(tmp_path):
    work = dataclasses.replace(fleets.WORK, by_class={"phone": (0.1, 0.2)})
    work.save(tmp_path / "work.json")
    assert Work.load(tmp_path / "work.json") == work
    (tmp_path / "work.json").write_text('{"steps": 3}')
    with pytest.raises(errors.ConfigError, match=r"work.json does not say.*fixed_s"):
        Work.load(tmp_path / "work.json")


def test_a_device_table_replaces_what_was_measured_here(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("class,fixed_ms,step_ms\nphone,100,250\n")
    table = read_device_table(path)
    assert table == {"phone": (0.1, 0.25)}
    spec = fleets.spec_of(fleets.device(speed=0.1))
    users = population.draw_users(spec, 3, 0)
    work = dataclasses.replace(fleets.WORK, by_class=table)
    found = Costs(spec, work).phases(users, np.zeros([3], bool))
    np.testing.assert_allclose(found.step_s, 0.25)
    np.testing.assert_allclose(found.fixed_s, 0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class,step_ms\nphone,1\n", "no column fixed_ms"),
        ("class,fixed_ms,step_ms\nphone,1,fast\n", "line 2.*'fast'"),
        (
            "class,fixed_ms,step_ms\nphone,1,-2\n",
            "line 2: the time of the step is -2.0",
        ),
        ("class,fixed_ms,step_ms\nphone,1,2\nphone,1,2\n", "line 3: phone.*twice"),
    ],
)
def test_broken_device_tables_are_refused_with_their_line(tmp_path, text, said):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match=said):
        read_device_table(path)


def test_a_table_of_other_classes_is_refused():
    work = dataclasses.replace(fleets.WORK, by_class={"tablet": (0.1, 0.2)})
    with pytest.raises(errors.ConfigError, match=r"tablet.*fleet test has phone"):
        Costs(fleets.spec_of(), work)


def simulator_of(spec, protocol, num_users, trace=None):
    fleet = fleets.fleet_of(spec, num_users, trace=trace)
    return Simulator(fleet, protocol, fleets.WORK, np.arange(num_users))


def test_a_goal_larger_than_the_fleet_is_refused_at_once():
    with pytest.raises(errors.ConfigError, match=r"chooses 13.*only 12 users"):
        simulator_of(fleets.spec_of(), SyncRound(10, 1.3), 12)


def test_a_deadline_nobody_can_meet_is_refused_at_once():
    with pytest.raises(errors.ConfigError, match=r"deadline_s is 8.5.*fastest.* 9 s"):
        simulator_of(fleets.spec_of(), SyncRound(2, deadline_s=8.5), 12)
    # One step of ten, and the links: 4.5 s.
    simulator_of(fleets.spec_of(), SyncRound(2, deadline_s=4.6, late=PARTIAL), 12)


def test_a_deadline_too_few_can_meet_stops_the_run_and_does_not_spin():
    slow = fleets.device(name="slow", share=0.9, speed=0.1)
    fast = fleets.device(name="fast", share=0.1)
    simulator = simulator_of(
        fleets.spec_of(slow, fast), SyncRound(50, deadline_s=10), 200
    )
    with pytest.raises(errors.ConfigError, match=r"abandoned 50 times.*50 reports"):
        simulator.next_round(0)


def test_a_fleet_that_sleeps_stops_the_run_and_does_not_spin(monkeypatch):
    monkeypatch.setattr(simulator_module, "_MOST_WAIT_S", 7200.0)
    spec = fleets.spec_of(idle=availability.Daily(3, 0.01, 1, 3600))
    simulator = simulator_of(spec, SyncRound(10, needs=("idle",)), 12)
    with pytest.raises(
        errors.ConfigError, match=r"needs 10 devices.*in 2 hours.*of 12 were"
    ):
        simulator.next_round(0)


def test_partial_work_is_as_many_steps_as_leave_time_for_the_upload():
    protocol = SyncRound(4, deadline_s=7.2, late=PARTIAL)
    (step,) = simulator_of(fleets.spec_of(), protocol, 10).next_round(0)
    # 7.2 s without 1 down, 2 fixed and 1 up: six steps of 0.5 s.
    assert step.taken["steps"].tolist() == [6] * 4
    assert step.end_s == 7.0


def test_who_has_no_time_for_a_step_sends_nothing():
    slow = fleets.device(name="slow", share=0.5, speed=0.1)
    fast = fleets.device(name="fast", share=0.5)
    protocol = SyncRound(6, deadline_s=9, min_reports=1, late=PARTIAL)
    (step,) = simulator_of(fleets.spec_of(slow, fast), protocol, 40).next_round(0)
    is_slow = step.tasks["device"] == 0
    assert 0 < is_slow.sum() < 6
    assert (step.tasks["outcome"][is_slow] == schedule.LATE).all()
    assert (step.tasks["bytes_up"][is_slow] == 0).all()
    assert (step.tasks["compute_s"][is_slow] == 0).all()
    assert (step.taken["steps"] == 10).all()


WINDOWS = availability.Windows([0, 2], [0.0, 20.0], [5.0, 50.0], 100.0)


def test_a_device_that_goes_off_gives_up_or_pauses():
    """On from 0 to 5 s and from 20 s: of 9 s of work, five are done before 20."""
    aborted = simulator_of(
        fleets.spec_of(), SyncRound(3, min_reports=1), 6, WINDOWS
    )._attempt(0, 0)
    assert {*aborted.tasks["cause"]} == {schedule.WENT_OFF}
    assert (aborted.end_s, aborted.is_taken) == (5, False)
    # 1 s down and 4 of the 7 s of training: 2 fixed, and four steps.
    assert aborted.tasks["compute_s"].tolist() == [4.0] * 3
    assert aborted.tasks["steps"].tolist() == [4] * 3
    (paused,) = simulator_of(
        fleets.spec_of(), SyncRound(3, leaving=PAUSE), 6, WINDOWS
    ).next_round(0)
    assert (paused.end_s, paused.is_taken) == (24, True)
    np.testing.assert_allclose(paused.tasks["joules"][:, 1], 24)


def test_late_devices_are_told_not_to_send():
    slow = fleets.device(name="slow", share=0.5, speed=0.1)
    fast = fleets.device(name="fast", share=0.5)
    simulator = simulator_of(fleets.spec_of(slow, fast), SyncRound(5, 2.0), 40)
    (step,) = simulator.next_round(0)
    # Fast ones that are late were sending already.
    is_late = step.tasks["outcome"] == schedule.LATE
    late = step.tasks[is_late & (step.tasks["device"] == 0)]
    assert len(late) > 1
    assert (late["up_s"] == 0).all()
    assert (late["bytes_up"] == 0).all()
    assert (late["cause"] == schedule.AFTER_GOAL).all()
    # They work on, and are not chosen again meanwhile.
    assert (late["end_s"] > step.end_s).all()
    following = simulator.next_round(1)[-1]
    busy = late["user"][late["end_s"] > following.begin_s]
    assert len(busy)
    assert not np.isin(following.tasks["user"], busy).any()


def test_a_day_s_energy_is_no_more_than_allowed():
    # 24 J a task, of 54,000 J: two tasks leave a device short until the next day.
    protocol = SyncRound(6, most_battery=0.0008)
    simulator = simulator_of(fleets.spec_of(), protocol, 6)
    begins = [simulator.next_round(number)[-1].begin_s for number in range(4)]
    assert begins[:2] == [0, 9]
    assert begins[2] == pytest.approx(86_400, abs=60)
    assert begins[3] == begins[2] + 9


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_windows_answer_alike_in_any_order(data):
    """A stateful index over a trace would answer by the order of questions."""
    cuts = data.draw(
        st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True)
    )
    cuts = sorted(cuts)[: len(cuts) // 2 * 2]
    starts, ends = np.array(cuts[::2], float), np.array(cuts[1::2], float)
    trace = availability.Windows([0, len(starts)], starts, ends, 1000.0)
    times = np.array(data.draw(st.lists(st.floats(0, 5000), min_size=1, max_size=20)))
    users = np.zeros(len(times), int)
    inside = [
        bool(((starts <= t % 1000) & (t % 1000 < ends)).any()) for t in times.tolist()
    ]
    assert trace.is_on(users, times).tolist() == inside
    order = np.argsort(times)[::-1]
    assert trace.is_on(users, times[order]).tolist() == [inside[i] for i in order]
    following = trace.next_on(users, times)
    assert (following >= times).all()
    assert trace.is_on(users, following + 1e-7).all()
    on = trace.is_on(users, times)
    off = trace.off_at(users, times)
    finite = on & np.isfinite(off)
    assert not trace.is_on(users[finite], off[finite] + 1e-7).any()
    assert trace.is_on(users[finite], (times[finite] + off[finite]) / 2).all()


@pytest.mark.parametrize(
    ("starts", "ends", "said"),
    [
        ([0, 5], [6, 9], "Device 1 of the trace has windows that overlap"),
        ([0, 5], [5, 9], "windows that overlap or touch"),
        ([5, 7], [4, 9], "ends before it has begun"),
        ([0, 5], [2, 11], "outside of 0 to 10 s"),
    ],
)
def test_traces_that_make_no_sense_are_refused_with_the_device(starts, ends, said):
    offsets = [0, 1, 3]
    with pytest.raises(errors.DataError, match=said):
        availability.Windows(offsets, [0, *starts], [1, *ends], 10.0)


def test_a_device_without_windows_is_never_on():
    trace = availability.Windows([0, 0, 1], [1.0], [2.0], 10.0)
    users, times = np.array([0, 1, 2]), np.array([0.5, 0.5, 1.5])
    assert trace.is_on(users, times).tolist() == [False, False, False]
    assert trace.next_on(users, times).tolist() == [np.inf, 1, np.inf]


def test_draws_depend_on_their_key_alone():
    users = np.arange(1000)
    whole = draws.bits(1, draws.PACE, 5, users, -3)
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(
        whole[order], draws.bits(1, draws.PACE, 5, users[order], -3)
    )
    one = [int(draws.bits(1, draws.PACE, 5, user, -3)[0]) for user in range(1000)]
    assert whole.tolist() == one
    assert len({*one}) == 1000
    others = [
        draws.bits(2, draws.PACE, 5, users, -3),
        draws.bits(1, draws.DOWN, 5, users, -3),
        draws.bits(1, draws.PACE, 6, users, -3),
        draws.bits(1, draws.PACE, users, 5, -3),
    ]
    for other in others:
        # The last has the key (5, 5) in common.
        assert (other == whole).sum() <= 1


def test_draws_are_uniform_and_do_not_follow_their_neighbours():
    drawn = draws.uniform(0, draws.PACE, np.arange(200_000))
    counts = np.bincount((drawn * 100).astype(int), minlength=100)
    chi = ((counts - 2000) ** 2 / 2000).sum()
    assert chi < 99 + 5 * np.sqrt(2 * 99)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.01


@settings(max_examples=30, deadline=None)
# Few are sorted, many walked.
@given(st.integers(1, 3000) | st.integers(4000, 20_000), st.integers(0, 2**40))
def test_a_walk_meets_everyone_once(size, seed):
    found = draws.walk(seed, (1, 2), size, np.arange(size))
    assert sorted(found.tolist()) == [*range(size)]


def test_a_user_s_device_does_not_depend_on_how_many_there_are(tmp_path):
    spec = devices.find_spec("mixed")
    many = population.draw_users(spec, 3000, 7)
    np.testing.assert_array_equal(many[:100], population.draw_users(spec, 100, 7))
    shares = np.bincount(many["device"], minlength=3) / 3000
    np.testing.assert_allclose(shares, [0.3, 0.5, 0.2], atol=0.03)
    population.write_users(many, tmp_path / "users.bin")
    np.testing.assert_array_equal(population.open_users(tmp_path / "users.bin"), many)
    (tmp_path / "users.bin").write_bytes(many.tobytes()[:-3])
    with pytest.raises(errors.DataError, match="no file of a fleet's users"):
        population.open_users(tmp_path / "users.bin")


def test_classes_tied_to_data_follow_the_ranks():
    spec = devices.find_spec("mixed")
    ranks = np.linspace(0, 1, 1000, endpoint=False)
    users = population.draw_users(spec, 1000, 0, ranks)
    # The lowest ranks have the slowest class, of 30 %.
    assert (users["device"][:300] == 0).all()
    assert (users["device"][800:] == 2).all()


def test_a_schedule_is_read_as_it_was_written(tmp_path):
    simulator = simulator_of(fleets.spec_of(), SyncRound(3, min_reports=1), 9, WINDOWS)
    steps = (simulator._attempt(0, 0), simulator._attempt(0, 1))
    written = schedule.Schedule(("phone",), steps)
    written.save(tmp_path / "s.npz")
    found = schedule.Schedule.load(tmp_path / "s.npz")
    assert found.classes == written.classes
    for a, b in zip(found.steps, written.steps, strict=True):
        assert a[:-1] == b[:-1]
        assert a.tasks.tobytes() == b.tasks.tobytes()
    whole = (tmp_path / "s.npz").read_bytes()
    (tmp_path / "s.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.DataError, match="could not be read as a schedule"):
        schedule.Schedule.load(tmp_path / "s.npz")


def test_rows_of_rounds_sum_their_tasks_up():
    spec = devices.find_spec("mixed")
    protocol = SyncRound(20, 1.5, deadline_s=25.0, min_reports=15)
    fleet = fleets.fleet_of(spec, 500)
    steps = fleets.run(Simulator(fleet, protocol, fleets.WORK, np.arange(500)), 12)
    classes = [device.name for device in spec.devices]
    assert len(steps) > 12, "no round is abandoned"
    rows = fleet_rows.rounds_table(steps)
    for step, row in zip(steps, rows.to_dict("records"), strict=True):
        found = schedule.summarize([step], len(classes))
        assert [row[name] for name in schedule.OUTCOMES] == found.tasks.tolist()
        assert row["bytes_down"] == found.bytes_down
        assert row["bytes_up"] == found.bytes_up
        spent = [row[f"joules_{name}"] for name in fleet_rows.ESTIMATES]
        assert spent == pytest.approx(found.joules.tolist())
        assert row["wasted_compute"] == pytest.approx(found.wasted[0])
        assert (row["begin_s"], row["end_s"]) == (step.begin_s, step.end_s)
    again = fleet_rows.last_step(fleet_rows.tasks_table(steps, classes), rows, classes)
    assert again[:-1] == steps[-1][:-1]
    assert again.tasks.tobytes() == steps[-1].tasks.tobytes()


def test_gini_of_equals_is_nothing_and_of_one_for_all_nearly_one():
    assert schedule.gini([3, 3, 3]) == 0
    assert schedule.gini([0] * 99 + [7]) == pytest.approx(0.99)
    assert schedule.gini([]) == 0

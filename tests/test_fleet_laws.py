"""Laws of synchronous rounds, in closed form and against an independent simulator."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import simpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tests import fleets
from tff_perfedavg import errors
from tff_perfedavg.fleet import availability, cohort, devices, draws, schedule
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.names import ABORT, DROP, PARTIAL, PAUSE
from tff_perfedavg.fleet.protocol import SyncRound
from tff_perfedavg.fleet.simulator import Simulator

# Durations that vary, and hardly anything but training.
SPREAD = fleets.device(speed_sigma=0.8)
LONG = Work(steps=10, fixed_s=0.0, step_s=10.0, bytes_down=1, bytes_up=1)


def simulator_of(spec, protocol, num_users, work=fleets.WORK, **kwargs):
    fleet = fleets.fleet_of(spec, num_users, **kwargs)
    return Simulator(fleet, protocol, work, np.arange(num_users))


def test_equal_devices_take_what_the_phases_sum_to():
    simulator = simulator_of(fleets.spec_of(), SyncRound(5), 20)
    (step,) = simulator.next_round(0)
    assert (step.begin_s, step.end_s, step.is_taken) == (0, 9, True)
    task = step.tasks[0]
    assert [task[f"{p}_s"] for p in ("down", "compute", "up")] == [1, 7, 1]
    # 1 s of 0.5, 1, 2 W; 7 s of 1, 3, 6 W; 1 s of 1, 2, 4 W.
    np.testing.assert_allclose(task["joules"], [8.5, 24, 48])
    assert simulator.clock_s == 9


def test_a_fleet_that_is_always_on_has_the_cohorts_of_a_run_without_a_fleet():
    users = np.arange(7, 60, 2)
    fleet = fleets.fleet_of(fleets.spec_of(), 60, seed=11)
    simulator = Simulator(fleet, SyncRound(6), fleets.WORK, users)
    for number in range(5):
        (step,) = simulator.next_round(number)
        expected = cohort.sample_cohort(users, 6, 11, number)
        np.testing.assert_array_equal(step.taken["user"], expected)


def test_the_first_reports_are_an_order_statistic():
    """F(T of the k-th of n) is Beta(k, n - k + 1), whatever F is."""
    k, n, rounds = 10, 13, 400
    simulator = simulator_of(fleets.spec_of(SPREAD), SyncRound(k, n / k), 100_000, LONG)
    lasted = [s.end_s - s.begin_s for s in fleets.run(simulator, rounds)]
    # log T is normal around log 100 with the deviation of the speeds.
    reached = stats.norm.cdf(np.log(np.array(lasted) / 100) / 0.8)
    assert stats.kstest(reached, stats.beta(k, n - k + 1).cdf).pvalue > 0.01


def test_over_selection_leaves_the_slow_behind_by_the_share_that_solves_the_mean():
    """Half of the fleet four times slower gives less than half of the reports."""
    slow = fleets.device(name="slow", share=0.5, speed=0.25, speed_sigma=1.0)
    fast = fleets.device(name="fast", share=0.5, speed=1.0, speed_sigma=1.0)
    simulator = simulator_of(
        fleets.spec_of(slow, fast), SyncRound(100, 1.3), 1_000_000, LONG
    )
    steps = fleets.run(simulator, 200)
    share = schedule.summarize(steps, 2).share_by_class[0]

    def reported(t, speed):
        return stats.norm.cdf(np.log(t * speed / 100))

    # sum_c pi_c F_c(t) = k / n
    low, high = 1.0, 1e5
    for _ in range(100):
        t = math.sqrt(low * high)
        if (reported(t, 0.25) + reported(t, 1.0)) / 2 < 100 / 130:
            low = t
        else:
            high = t
    expected = reported(t, 0.25) / (reported(t, 0.25) + reported(t, 1.0))
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20_000))
    assert share < 0.45


def test_reports_before_a_deadline_are_binomial_and_abandoned_rounds_its_tail():
    n, fewest, deadline = 20, 12, 120.0
    protocol = SyncRound(n, deadline_s=deadline, min_reports=fewest)
    simulator = simulator_of(fleets.spec_of(SPREAD), protocol, 1_000_000, LONG)
    steps = fleets.run(simulator, 400)
    in_time = np.array([np.isin(s.tasks["outcome"], (0, 3)).sum() for s in steps])
    chance = stats.norm.cdf(math.log(deadline / 100) / 0.8)
    assert in_time.mean() == pytest.approx(
        n * chance, abs=4 * math.sqrt(n * chance * (1 - chance) / len(steps))
    )
    tail = stats.binom.cdf(fewest - 1, n, chance)
    abandoned = np.mean([not s.is_taken for s in steps])
    assert abandoned == pytest.approx(
        tail, abs=4 * math.sqrt(tail * (1 - tail) / len(steps))
    )
    assert ((in_time < fewest) == [not s.is_taken for s in steps]).all()


def test_devices_stay_with_the_chance_of_their_hazard():
    """P(complete) = exp(-h T) for tasks of one length."""
    spec = fleets.spec_of(drop_outs_per_hour=100.0)
    protocol = SyncRound(100, min_reports=1)
    steps = fleets.run(simulator_of(spec, protocol, 10_000), 50)
    tasks = fleets.tasks_of(steps)
    stayed = np.mean(tasks["outcome"] == schedule.TAKEN)
    expected = math.exp(-100 / 3600 * 9)
    assert stayed == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(len(tasks)))
    gone = tasks[tasks["outcome"] == schedule.DROPPED]
    assert {*gone["cause"]} == {schedule.DROPPED_OUT}
    assert (gone["bytes_up"] == 0).all()


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_users_are_on_with_the_chance_of_their_hour(ratio):
    daily = availability.Daily(3.0, 0.6, ratio, 3600.0)
    on = availability.Diurnal(daily, np.full([20_000], -20), seed=3)
    users = np.arange(20_000)
    for hour in (3, 9, 15):
        # Five hours behind UTC.
        times = np.full(len(users), (hour + 5) * 3600.0 + 5 * 86_400)
        expected = 0.6 * ratio ** -((1 - math.cos((hour - 3) * math.pi / 12)) / 2)
        # Windows whose middle is up to half an hour away.
        assert on.is_on(users, times).mean() == pytest.approx(expected, abs=0.025)


def test_by_day_and_night_users_are_on_as_renewals_say():
    """P(on) = E[on] / (E[on] + E[off]), over long times of one user."""
    on = availability.Diurnal(availability.Daily(0, 0.3, 1, 3600), np.zeros([1]), 5)
    user, now, spent = np.zeros([1], int), np.zeros([1]), {True: [], False: []}
    for _ in range(400):
        is_on = bool(on.is_on(user, now)[0])
        ends = on.off_at(user, now) if is_on else on.next_on(user, now)
        spent[is_on].append(float((ends - now)[0]))
        now = ends
    share = np.mean(spent[True]) / (np.mean(spent[True]) + np.mean(spent[False]))
    assert share == pytest.approx(0.3, abs=0.05)
    # Runs of windows are geometric.
    assert np.mean(spent[True]) == pytest.approx(3600 / 0.7, rel=0.15)


class Exponential:
    """A fleet of test whose users' tasks last exponentially, by class."""

    def __init__(self, means, num_users=200_000):
        devices_of = [
            fleets.device(name=f"class {number}", share=1 / len(means), speed=1 / mean)
            for number, mean in enumerate(means)
        ]
        self.fleet = fleets.fleet_of(fleets.spec_of(*devices_of), num_users)
        drawn = np.random.default_rng(0).exponential(size=num_users)
        self.fleet.records["speed"] = 1 / drawn

    def run(self, k, n, rounds):
        work = Work(steps=1, fixed_s=0.0, step_s=1e6, bytes_down=1, bytes_up=1)
        users = np.arange(len(self.fleet.records))
        simulator = Simulator(self.fleet, SyncRound(k, n / k), work, users)
        return fleets.run(simulator, rounds)


def test_waiting_for_100_of_130_is_three_and_a_half_times_as_fast():
    """Exponential durations: E[T of the k-th of n] = (H_n - H_{n-k}) / rate."""
    fleet = Exponential([1.0])

    def mean(n):
        lasted = [s.end_s - s.begin_s for s in fleet.run(100, n, 300)]
        return np.mean(lasted) / 1e6

    def harmonic(n):
        return (1 / np.arange(1, n + 1)).sum()

    some, every = harmonic(130) - harmonic(30), harmonic(100)
    assert (round(some, 3), round(every, 3)) == (1.454, 5.187)
    assert mean(130) == pytest.approx(some, rel=0.03)
    assert mean(100) == pytest.approx(every, rel=0.06)
    assert mean(100) / mean(130) == pytest.approx(3.57, rel=0.08)


def test_half_of_the_fleet_four_times_slower_gives_37_per_cent_of_the_reports():
    steps = Exponential([4.0, 1.0]).run(100, 130, 300)
    share = schedule.summarize(steps, 2).share_by_class[0]
    assert share == pytest.approx(0.372, abs=4 * math.sqrt(0.25 / 30_000))


def test_devices_of_many_paces_stay_with_the_mean_chance_of_their_hazard():
    """P(complete) = E[exp(-h T)]."""
    spec = dataclasses.replace(fleets.spec_of(SPREAD), drop_outs_per_hour=20.0)
    protocol = SyncRound(100, min_reports=1)
    simulator = simulator_of(spec, protocol, 200_000, LONG)
    tasks = fleets.tasks_of(fleets.run(simulator, 100))
    # Log-normal durations around 100 s, and hardly anything but training.
    at, weight = np.polynomial.hermite_e.hermegauss(60)
    chance = weight @ np.exp(-20 / 3600 * 100 * np.exp(0.8 * at)) / weight.sum()
    stayed = np.mean(tasks["outcome"] == schedule.TAKEN)
    assert stayed == pytest.approx(chance, abs=4 * 0.5 / math.sqrt(len(tasks)))


def test_tasks_of_4_3_2_and_1_seconds_two_at_a_time_take_6():
    """Synchronous rounds wait for the slower of each two: 4 + 2."""
    fleet = fleets.fleet_of(fleets.spec_of(), 4)
    fleet.records["speed"] = 1 / np.array([4.0, 3.0, 2.0, 1.0])
    work = Work(steps=1, fixed_s=0.0, step_s=1.0, bytes_down=1, bytes_up=1)
    simulator = Simulator(fleet, SyncRound(2), work, np.arange(4))
    for users in ([0, 1], [2, 3]):
        simulator._select = lambda *_, users=users: np.array(users)
        simulator.next_round(0)
    assert simulator.clock_s == pytest.approx(6, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    chances=st.lists(st.floats(0.2, 0.9), min_size=1, max_size=3),
    at=st.floats(0, 86_400),
)
def test_all_conditions_hold_where_each_one_does(seed, chances, at):
    zeros, users = np.zeros([8], int), np.arange(8)
    parts = [
        availability.Diurnal(
            availability.Daily(3, chance, 2, 600), zeros, seed, condition=number
        )
        for number, chance in enumerate(chances)
    ]
    whole, now = availability.AllOf(parts), np.full([8], at)
    each = np.all([p.is_on(users, now) for p in parts], 0)
    np.testing.assert_array_equal(whole.is_on(users, now), each)
    begins = whole.next_on(users, now)
    assert (begins >= now).all()
    assert (begins[each] == at).all()
    found = np.isfinite(begins)
    on, began = users[found], begins[found]
    # On from then; not before, at any of many times; and until one goes off.
    assert np.all([p.is_on(on, began + 1e-6) for p in parts])
    for share in (0.01, 0.3, 0.7, 0.99):
        before = at + share * (began - at)
        later = began > at
        assert not whole.is_on(on[later], before[later]).any()
    ends = whole.off_at(on, began + 1e-6)
    first = np.min([p.off_at(on, began + 1e-6) for p in parts], 0)
    np.testing.assert_array_equal(ends, first)
    assert not whole.is_on(on, ends + 1e-6).any()


def test_windows_begin_where_they_are_said_to_however_that_is_rounded():
    """Else who pauses would wait for ever at a boundary."""
    users = np.arange(20_000)
    daily = availability.Daily(3, 0.6, 2, 900.0)
    on = availability.Diurnal(daily, np.zeros(len(users), int), 0)
    times = np.linspace(0, 1e5, len(users))
    # Of 40,000 boundaries, some 180 would be rounded into the window before.
    assert on.is_on(users, on.next_on(users, times)).all()
    assert not on.is_on(users, on.off_at(users, times)).any()


def test_a_fleet_that_is_never_on_enough_is_told_at_once():
    """Few looks are as good as one a minute: no user comes on in between."""
    spec = fleets.spec_of(idle=availability.Daily(3, 0.4, 2, 7200))
    protocol = SyncRound(90_000, needs=("idle",))
    simulator = simulator_of(spec, protocol, 100_000)
    looks, look = [], simulator._look
    simulator._look = lambda *given: looks.append(simulator.clock_s) or look(*given)
    with pytest.raises(errors.ConfigError, match=r"so many of 100000 were never on"):
        simulator.next_round(0)
    # A week has 10,081 minutes.
    assert len(looks) < 200


def test_looks_that_are_left_out_would_have_found_nothing():
    spec = fleets.spec_of(idle=availability.Daily(3, 0.5, 4, 900))
    protocol = SyncRound(27, min_reports=1, needs=("idle",))
    found = {}
    for name in ("some", "every"):
        simulator = simulator_of(spec, protocol, 40)
        if name == "every":
            simulator._earliest = lambda wanted: 0.0
        found[name] = fleets.run(simulator, 12)
    assert sum(step.waited_s for step in found["some"]) > 3600
    for some, every in zip(found["some"], found["every"], strict=True):
        assert some[:-1] == every[:-1]
        assert some.tasks.tobytes() == every.tasks.tobytes()


def test_who_began_to_send_before_the_end_may_go_on_after_a_pause():
    """An upload of 1 s that begins at 8 s and pauses, in a round that ends at 8.6."""

    class Pauses:
        def is_on(self, users, times):
            return np.ones(len(users), bool)

        def off_at(self, users, times):
            return np.where((users == 0) & (times < 8.5), 8.5, np.inf)

        def next_on(self, users, times):
            return np.where((users == 0) & (times >= 8.5) & (times < 20), 20.0, times)

    fleet = fleets.fleet_of(fleets.spec_of(), 2, trace=Pauses())
    fleet.records["speed"][1] = 7 / 6.6
    protocol = SyncRound(1, 2.0, leaving=PAUSE)
    simulator = Simulator(fleet, protocol, fleets.WORK, np.arange(2))
    (step,) = simulator.next_round(0)
    first, second = np.sort(step.tasks, order="user")
    assert step.end_s == second["end_s"] == pytest.approx(8.6)
    assert (first["outcome"], first["up_s"]) == (schedule.LATE, 1)
    assert first["bytes_up"] == fleets.WORK.bytes_up
    assert first["end_s"] == pytest.approx(20.5)


MIXED = fleets.spec_of(
    fleets.device(name="slow", share=0.4, speed=0.3, speed_sigma=0.5),
    fleets.device(name="fast", share=0.6, speed=1.0, speed_sigma=0.5),
    drop_outs_per_hour=20.0,
    zones=(devices.Zone(-5, 0.5), devices.Zone(2, 0.5)),
    idle=availability.Daily(3, 0.7, 4, 600),
)
PROTOCOLS = [
    SyncRound(8, 1.5, deadline_s=25, min_reports=4, needs=("idle",)),
    SyncRound(8, 1.5, deadline_s=25, min_reports=2, needs=("idle",), late=PARTIAL),
    SyncRound(8, 1.5, deadline_s=400, min_reports=4, needs=("idle",), leaving=PAUSE),
    SyncRound(8, 1.25, min_reports=1, interval_s=30),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_books_balance(protocol):
    simulator = simulator_of(MIXED, protocol, 300)
    steps = fleets.run(simulator, 60)
    tasks = fleets.tasks_of(steps)
    found = schedule.summarize(steps, 2)
    assert found.tasks.sum() == len(tasks) == protocol.num_selected * len(steps)
    assert found.bytes_down == len(tasks) * fleets.WORK.bytes_down
    up = (tasks["bytes_up"] > 0).sum() * fleets.WORK.bytes_up
    assert found.bytes_up == up
    # All that was taken was sent, and what was dropped was not.
    assert (tasks["bytes_up"][np.isin(tasks["outcome"], (0, 3))] > 0).all()
    assert (tasks["bytes_up"][tasks["outcome"] == schedule.DROPPED] == 0).all()
    by_user = np.zeros([300, 3])
    np.add.at(by_user, tasks["user"], tasks["joules"])
    by_class = [tasks["joules"][tasks["device"] == c].sum(0) for c in range(2)]
    np.testing.assert_allclose(by_user.sum(0), found.joules)
    np.testing.assert_allclose(np.sum(by_class, 0), found.joules)
    # The clock never goes back, and a user is in flight once.
    times = [t for s in steps for t in (s.begin_s, s.end_s)]
    assert (np.diff(times) >= 0).all()
    for user in np.unique(tasks["user"]):
        mine = tasks[tasks["user"] == user]
        assert (mine["begin_s"][1:] >= mine["end_s"][:-1]).all()
    assert ((tasks["cause"] == 0) == np.isin(tasks["outcome"], (0, 3))).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("at", [1, 7, 30])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(protocol, at):
    protocol = dataclasses.replace(protocol, most_battery=0.003)
    whole = fleets.run(simulator_of(MIXED, protocol, 300), 40)
    first = simulator_of(MIXED, protocol, 300)
    before = fleets.run(first, at)
    second = simulator_of(MIXED, protocol, 300)
    second.restore(first.state())
    after = [s for number in range(at, 40) for s in second.next_round(number)]
    for expected, found in zip(whole, before + after, strict=True):
        assert expected[:-1] == found[:-1]
        assert expected.tasks.tobytes() == found.tasks.tobytes()


def test_over_selection_and_deadlines_are_faster_and_less_fair():
    def measured(**kwargs):
        simulator = simulator_of(MIXED, SyncRound(20, **kwargs), 10_000)
        return schedule.summarize(fleets.run(simulator, 60), 2)

    patient = measured(min_reports=1)
    eager = measured(over_selection=1.5, min_reports=1)
    strict = measured(deadline_s=10, min_reports=1)
    assert eager.round_s < patient.round_s
    assert strict.round_s < patient.round_s
    assert eager.share_by_class[0] < patient.share_by_class[0]
    assert strict.share_by_class[0] < patient.share_by_class[0]


# Phones whose mobile link is slower and takes more.
TWO_LINKS = dataclasses.replace(
    MIXED,
    drop_outs_per_hour=60.0,
    devices=tuple(
        dataclasses.replace(
            one,
            mobile=dataclasses.replace(
                fleets.LINK,
                down_mbps=4,
                up_mbps=1,
                receive_watts=devices.Estimate(1, 1.5, 3),
                send_watts=devices.Estimate(2, 5, 9),
            ),
        )
        for one in MIXED.devices
    ),
)


class Told(NamedTuple):
    """What a device of the oracle did, seconds by phase."""

    end: float
    seconds: tuple[float, ...]
    joules: np.ndarray
    steps: int
    is_sent: bool
    is_gone: bool


def steps_before(deadline, others, step, most):
    """The most steps that leave time for all else before the deadline."""
    return max(
        (k for k in range(most + 1) if others + k * step <= deadline + 1e-9), default=0
    )


def oracle(fleet, protocol, work, users_of_round):
    """The same rounds in simpy, one process per device, from the same draws.

    Covers what the chosen users decide: links, durations, hazards, availability,
    pauses, deadline, partial work, reports, refused uploads, energy. All is worked out
    anew from the fleet's description.
    """
    env = simpy.Environment()
    spec, available = fleet.spec, fleet.availability(protocol.needs)
    unmetered = fleet.availability(("unmetered",))
    rounds = []

    def device(user, number, reports, told, found):
        here = np.array([user]), np.array([env.now])
        record = fleet.records[user]
        of_class = spec.devices[record["device"]]
        link = of_class.wifi if unmetered.is_on(*here)[0] else of_class.mobile
        down = work.bytes_down * 8e-6 / (link.down_mbps * float(record["down"]))
        up = work.bytes_up * 8e-6 / (link.up_mbps * float(record["up"]))
        speed = of_class.speed * float(record["speed"])
        fixed, step = work.fixed_s / speed, work.step_s / speed
        steps = work.steps
        if protocol.late == PARTIAL:
            others = down + fixed + up
            steps = steps_before(protocol.deadline_s, others, step, steps)
        rate = spec.drop_outs_per_hour / 3600
        drawn = draws.exponential(
            fleet.seed, draws.DROP_OUT, number, 0, np.array([user])
        )
        left = float(drawn[0]) / rate
        spent = [0.0, 0.0, 0.0]

        def finish(is_sent=False, is_gone=False):
            watts = (link.receive_watts, of_class.training_watts, link.send_watts)
            found[user] = Told(
                env.now,
                tuple(spent),
                sum(s * np.array(w) for s, w in zip(spent, watts, strict=True)),
                int(max(spent[1] - fixed, 0) / step + 1e-6),
                is_sent,
                is_gone,
            )

        phases = (down, fixed + steps * step, up) if steps else (down,)
        for phase, seconds in enumerate(phases):
            if phase == 2 and told.triggered:
                return finish()
            while seconds > 1e-9:
                here = np.array([user]), np.array([env.now])
                stays = float(available.off_at(*here)[0]) - env.now
                works = min(seconds, left, stays)
                yield env.timeout(works)
                spent[phase] += works
                seconds, left = seconds - works, left - works
                if left <= 1e-9 or (protocol.leaving == ABORT and seconds > 1e-9):
                    return finish(is_gone=True)
                if seconds > 1e-9:
                    here = np.array([user]), np.array([env.now])
                    yield env.timeout(float(available.next_on(*here)[0]) - env.now)
        if steps and not told.triggered:
            reports.append(user)
            if len(reports) == protocol.goal:
                told.succeed()
        return finish(is_sent=bool(steps))

    def server():
        for number, (begin, users) in enumerate(users_of_round):
            yield env.timeout(begin - env.now)
            reports, told, found = [], env.event(), {}
            tasks = [
                env.process(device(u, number, reports, told, found)) for u in users
            ]
            yield told | env.timeout(protocol.deadline_s) | env.all_of(tasks)
            if not told.triggered:
                told.succeed()
            rounds.append((env.now, sorted(reports), found))

    env.process(server())
    env.run()
    return rounds


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    over_selection=st.sampled_from([1.0, 1.3, 2.0]),
    deadline=st.sampled_from([12.0, 30.0, 200.0]),
    window=st.sampled_from([60.0, 600.0]),
    leaving=st.sampled_from([ABORT, PAUSE]),
    late=st.sampled_from([DROP, PARTIAL]),
)
def test_small_fleets_do_what_an_independent_simulator_says(
    seed, over_selection, deadline, window, leaving, late
):
    conditions = {
        "idle": availability.Daily(3, 0.9, 2, window),
        "unmetered": availability.Daily(22, 0.6, 2, 3600),
    }
    spec = dataclasses.replace(TWO_LINKS, conditions=conditions)
    fleet = fleets.fleet_of(spec, 40, seed=seed)
    protocol = SyncRound(
        5,
        over_selection,
        deadline,
        min_reports=1,
        needs=("idle",),
        leaving=leaving,
        late=late,
        # Long gaps, so that nobody is at work from the round before.
        interval_s=20_000.0,
    )
    simulator = Simulator(fleet, protocol, fleets.WORK, np.arange(40))
    steps = []
    for number in range(8):
        attempts = simulator.next_round(number)
        assume(len(attempts) == 1)
        steps += attempts
    expected = oracle(
        fleet,
        protocol,
        fleets.WORK,
        [(s.begin_s, s.tasks["user"].tolist()) for s in steps],
    )
    for step, (end, reports, found) in zip(steps, expected, strict=True):
        assert step.end_s == pytest.approx(end, abs=1e-6)
        assert sorted(step.taken["user"].tolist()) == reports
        for task in step.tasks:
            told = found[int(task["user"])]
            seconds = [task[f"{phase}_s"] for phase in ("down", "compute", "up")]
            np.testing.assert_allclose(seconds, told.seconds, atol=1e-6)
            np.testing.assert_allclose(task["joules"], told.joules, rtol=1e-6)
            assert task["end_s"] == pytest.approx(told.end, abs=1e-6)
            assert task["bytes_up"] == told.is_sent * fleets.WORK.bytes_up
            assert task["steps"] == told.steps
            assert (task["outcome"] == schedule.DROPPED) == told.is_gone

"""Laws of synchronous rounds, in closed form and against an independent simulator."""

import dataclasses
import math

import numpy as np
import pytest
import simpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tests import fleets
from tff_perfedavg.fleet import availability, cohort, devices, draws, schedule
from tff_perfedavg.fleet.cost import Work
from tff_perfedavg.fleet.names import ABORT, PARTIAL, PAUSE
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
    """Half of the fleet four times slower: 37.2 % of the reports of 100 of 130."""
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


def oracle(fleet, protocol, work, users_of_round):
    """The same rounds in simpy, one process per device, from the same draws.

    Covers what the chosen users decide: durations, hazards, availability, deadline,
    reports. Phases are worked out anew from the fleet's description.
    """
    env = simpy.Environment()
    spec, available = fleet.spec, fleet.availability(protocol.needs)
    rounds = []

    def device(user, number, reports, told):
        record = fleet.records[user]
        of_class = spec.devices[record["device"]]
        link = of_class.wifi
        down = work.bytes_down * 8e-6 / (link.down_mbps * float(record["down"]))
        up = work.bytes_up * 8e-6 / (link.up_mbps * float(record["up"]))
        speed = of_class.speed * float(record["speed"])
        train = (work.fixed_s + work.steps * work.step_s) / speed
        rate = spec.drop_outs_per_hour / 3600
        drawn = draws.exponential(
            fleet.seed, draws.DROP_OUT, number, 0, np.array([user])
        )
        left = float(drawn[0]) / rate
        for seconds in (down, train, up):
            if seconds == up and told.triggered:
                return
            here = np.array([user]), np.array([env.now])
            stays = float(available.off_at(*here)[0]) - env.now
            yield env.timeout(min(seconds, left, stays))
            if min(left, stays) < seconds:
                return
            left -= seconds
        if not told.triggered:
            reports.append(user)
            if len(reports) == protocol.goal:
                told.succeed()

    def server():
        for number, (begin, users) in enumerate(users_of_round):
            yield env.timeout(begin - env.now)
            reports, told = [], env.event()
            tasks = [env.process(device(u, number, reports, told)) for u in users]
            yield told | env.timeout(protocol.deadline_s) | env.all_of(tasks)
            if not told.triggered:
                told.succeed()
            rounds.append((env.now, sorted(reports)))

    env.process(server())
    env.run()
    return rounds


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    over_selection=st.sampled_from([1.0, 1.3, 2.0]),
    deadline=st.sampled_from([12.0, 30.0, 200.0]),
    window=st.sampled_from([60.0, 600.0]),
)
def test_small_fleets_do_what_an_independent_simulator_says(
    seed, over_selection, deadline, window
):
    spec = dataclasses.replace(
        MIXED, conditions={"idle": availability.Daily(3, 0.9, 2, window)}
    )
    fleet = fleets.fleet_of(spec, 40, seed=seed)
    protocol = SyncRound(
        5, over_selection, deadline, min_reports=1, needs=("idle",), leaving=ABORT
    )
    # Long gaps, so that nobody is at work from the round before.
    protocol = dataclasses.replace(protocol, interval_s=1000.0)
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
    for step, (end, reports) in zip(steps, expected, strict=True):
        assert step.end_s == pytest.approx(end, abs=1e-6)
        assert sorted(step.taken["user"].tolist()) == reports

"""Trace importers: what others' files say, and what is refused.

The files are made here, in the formats of FedScale, FLASH and Android.
"""

import datetime
import itertools
import json
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_perfedavg import errors
from tff_perfedavg.fleet import traces

HOUR, DAY = 3_600, 86_400


def client(*windows, finish_time=518_400, **more):
    """A FedScale client who is active in windows."""
    return {
        "duration": sum(end - start for start, end in windows),
        "inactive": [end for _, end in windows],
        "finish_time": finish_time,
        "active": [start for start, _ in windows],
        "model": "CPH1801",
        **more,
    }


def read_pickle(folder, content, read=traces.read_fedscale_availability):
    path = folder / "client_behave_trace"
    whole = isinstance(content, bytes)
    path.write_bytes(content if whole else pickle.dumps(content, protocol=3))
    return read(path)


def device(*messages):
    """A FLASH device with messages (hours since 2020-01-28, state)."""
    first = datetime.datetime(2020, 1, 28)
    lines = [f"{first + datetime.timedelta(hours=h)}\t{state}" for h, state in messages]
    return {"guid": "9b2f", "model": "MI 8", "messages": "\n".join(lines) + "\n"}


def read_flash(folder, devices):
    path = folder / "state_traces.json"
    path.write_text(devices if isinstance(devices, str) else json.dumps(devices))
    return traces.read_flash_availability(path)


def windows_of(trace):
    """The windows of each device."""
    pairs = list(zip(trace.starts.tolist(), trace.ends.tolist(), strict=True))
    bounds = trace.offsets.tolist()
    return [pairs[a:b] for a, b in itertools.pairwise(bounds)]


def is_on(trace, user, *times):
    users = np.full(len(times), user)
    return trace.availability().is_on(users, np.array(times, float)).tolist()


# A client of FedScale's, as its readers print it.
REAL = {
    "duration": 211625,
    "inactive": [65881, 133574, 208292, 276575, 295006, 356236, 400906, 475099],
    "finish_time": 518400,
    "active": [12788, 100044, 188992, 271372, 276663, 352625, 356267, 441193],
    "model": "CPH1801",
}


def test_fedscale_windows_are_those_of_the_file(tmp_path):
    trace = read_pickle(tmp_path, {3834: REAL, 1: client((0, 60), (90, 518_400))})
    assert windows_of(trace) == [
        list(zip(REAL["active"], REAL["inactive"], strict=True)),
        [(0, 60), (90, 518_400)],
    ]
    assert trace.period_s == 518_400
    assert (trace.ends - trace.starts)[:8].sum() == REAL["duration"]
    assert trace.offsets.dtype == np.int64
    assert trace.starts.dtype == trace.ends.dtype == np.float64
    assert "2105.11367" in trace.source


def test_a_device_is_on_inside_its_windows_and_again_after_the_period(tmp_path):
    trace = read_pickle(tmp_path, {1: client((100, 200)), 2: client((300, 400))})
    assert is_on(trace, 0, 99, 100, 199, 200) == [False, True, True, False]
    assert is_on(trace, 0, 518_499, 518_500, 518_600) == [False, True, False]
    # Users are more than devices.
    assert is_on(trace, 3, 150, 350) == [False, True]
    later = trace.availability().next_on(np.array([0]), np.array([250.0]))
    assert later.tolist() == [518_500]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_is_read_from_pickles_of_all_protocols(tmp_path, protocol):
    path = tmp_path / "trace"
    content = {"a": client((1.5, 2)), "b": client((1, 2), model={"x", None, True})}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    trace = traces.read_fedscale_availability(path)
    assert windows_of(trace) == [[(1.5, 2)], [(1, 2)]]


def test_empty_windows_vanish_and_touching_ones_join(tmp_path):
    given_windows = (5, 5), (10, 20), (20, 20), (20, 30), (40, 50)
    trace = read_pickle(tmp_path, {1: client(*given_windows)})
    assert windows_of(trace) == [[(10, 30), (40, 50)]]


def test_devices_without_windows_are_kept(tmp_path):
    trace = read_pickle(tmp_path, {1: client(), 2: client((0, 9)), 3: client()})
    assert trace.num_devices == 3
    assert is_on(trace, 0, 5) == [False]
    assert trace.availability().next_on(np.array([2]), np.zeros(1)).tolist() == [np.inf]


def test_windows_are_cut_at_the_finish_time(tmp_path):
    trace = read_pickle(tmp_path, {1: client((5, 20), (30, 40), finish_time=10)})
    assert windows_of(trace) == [[(5, 10)]]


def on_in_fedscale(entry, time):
    """FedScale's rule, but for its index, which depends on the times asked before."""
    time %= entry["finish_time"]
    pairs = zip(entry["active"], entry["inactive"], strict=True)
    return any(start <= time < end for start, end in pairs)


def test_a_client_that_finishes_sooner_repeats_until_the_longest_has_finished(tmp_path):
    clients = {1: client((0, 10), (40, 50), finish_time=70), 2: client(finish_time=200)}
    trace = read_pickle(tmp_path, clients)
    assert trace.period_s == 200
    assert windows_of(trace)[0][-2:] == [(140, 150), (180, 190)]
    times = np.arange(200)
    assert is_on(trace, 0, *times) == [on_in_fedscale(clients[1], t) for t in times]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (client((0, 10), (9, 20)), "9 to 20 s overlaps"),
        (client((30, 40), (0, 10)), "0 to 10 s overlaps"),
        (client((20, 10), duration=0), "20 to 10 s ends before it has begun"),
        (client((-5, 10)), "-5 to 10 s begins before 0"),
        (client((0, 1), duration=-1), "duration is -1"),
        (client((0, 1), finish_time=0), "finish_time is 0"),
        (client((0, 1), finish_time=-60), "finish_time is -60"),
        (client((0, 1), finish_time="6 days"), "finish_time is '6 days'"),
        (client((0, 1), active=[0, 5]), "2 active and 1 inactive"),
        (client((0, 1), active=7), "active is 7"),
        (client((0, 1), active=[[0]]), r"active is \[0\]"),
        (client((0, 1), active=[True]), "active is True"),
        (client((0, float("nan")), duration=0), "inactive is nan"),
        (client((0, 10**400), duration=0), "inactive is 1000"),
        (client((0, 10**9_000), duration=0), "inactive is a int of too many digits"),
        (client((0, 1), battery=3), "'battery' is unknown; needed: one of active"),
        ({"active": [0], "inactive": [1]}, "finish_time is missing"),
        ([0, 1], r"it is \[0, 1\]"),
    ],
)
def test_a_bad_client_is_refused_by_name(tmp_path, entry, said):
    with pytest.raises(errors.DataError, match=said) as caught:
        read_pickle(tmp_path, {1: client((0, 1)), 77: entry})
    assert f"{tmp_path / 'client_behave_trace'}: client 77: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [], [client((0, 1))], 5, None])
def test_a_pickle_of_no_devices_is_refused(tmp_path, content):
    with pytest.raises(errors.DataError, match="of no devices"):
        read_pickle(tmp_path, content)


def test_a_trace_in_which_nobody_is_ever_on_is_refused(tmp_path):
    with pytest.raises(errors.DataError, match=r"client_behave_trace .* is ever on"):
        read_pickle(tmp_path, {1: client(), 2: client()})


def test_a_record_far_shorter_than_the_trace_is_refused(tmp_path):
    clients = {1: client((0, 1), finish_time=5), 2: client((0, 1), finish_time=10**12)}
    with pytest.raises(errors.DataError, match="client 1: its record is of 5 s"):
        read_pickle(tmp_path, clients)


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


HARMFUL = {
    "system": lambda path: Runs(os.system, f"touch {path}"),
    "eval": lambda path: Runs(eval, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Runs(open, str(path), "w"),
    "getattr": lambda path: Runs(getattr, {}, "clear"),
    "class": lambda path: datetime.datetime(2020, 1, 1),
    "type": lambda path: os.PathLike,
    "array": lambda path: np.zeros(2),
}


@pytest.mark.parametrize("harm", HARMFUL)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "nest",
    [
        lambda bad: bad,
        lambda bad: {1: bad},
        lambda bad: {1: client((0, 1), model=[({"deep": (bad,)},)])},
        lambda bad: {1: client((0, 1), active=[bad])},
    ],
)
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, harm, protocol, nest):
    trap = tmp_path / "ran"
    content = pickle.dumps(nest(HARMFUL[harm](trap)), protocol=protocol)
    for read in (traces.read_fedscale_availability, traces.read_fedscale_capacity):
        with pytest.raises(errors.DataError, match="was not run") as caught:
            read_pickle(tmp_path, content, read)
        assert "client_behave_trace names " in str(caught.value)
    assert not trap.exists()


def test_the_refused_function_is_named(tmp_path):
    content = b"cos\nsystem\n(S'touch ran'\ntR."
    with pytest.raises(errors.DataError, match=r"names os\.system, which was not run"):
        read_pickle(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        # By a name with a dot, by classes of sets, of numbers' types.
        b"\x80\x04\x8c\x08builtins\x8c\nset.__init__\x93.",
        b"\x80\x04\x8c\x08builtins\x8c\x0d__import__.__\x93.",
        b"\x80\x02cnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tR.",
        b"\x80\x02cnumpy\ndtype\n(K\x01tR.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n(](X\x01\x00\x00\x00atR.",
        # An object kept elsewhere, a registered one, a list called.
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02]K\x01\x85R.",
    ],
)
def test_odd_pickles_are_refused(tmp_path, content):
    with pytest.raises(errors.DataError, match=r"client_behave_trace (names|is no)"):
        read_pickle(tmp_path, content)


def test_a_pickle_that_tampers_with_the_reader_harms_itself_alone(tmp_path):
    tamper = (
        b"\x80\x02cnumpy\ndtype\n(N}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00ssta0."
    )
    with pytest.raises(errors.DataError):
        read_pickle(tmp_path, tamper)
    capacities = {1: {"computation": np.float64(2), "communication": np.float32(3)}}
    found = read_pickle(tmp_path, capacities, traces.read_fedscale_capacity)
    assert (found.ms_per_example[0], found.kbit_per_s[0]) == (2, 3)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_a_truncated_pickle_is_refused(tmp_path, protocol):
    whole = pickle.dumps({1: REAL, 2: client((0, 1))}, protocol=protocol)
    for length in range(len(whole)):
        with pytest.raises(errors.DataError, match="client_behave_trace"):
            read_pickle(tmp_path, whole[:length])


# LONG_BINPUT ("r") reserves memory for as many objects as it names.
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80).map(lambda content: content.replace(b"r", b"q")))
def test_any_bytes_are_refused_in_words(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    with pytest.raises(errors.DataError, match="client_behave_trace"):
        read_pickle(folder, content)


READERS = (
    traces.read_fedscale_availability,
    traces.read_fedscale_capacity,
    traces.read_flash_availability,
    traces.read_power_profile,
    traces.Trace.load,
)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_an_error_that_names_it(tmp_path, read):
    with pytest.raises(errors.DataError, match=r"none could not be read: No such file"):
        read(tmp_path / "none")
    with pytest.raises(errors.DataError, match="could not be read: Is a directory"):
        read(tmp_path)


# Numbers of one client of FedScale's, as its readers print them.
@pytest.mark.parametrize("number", [float, np.float64, np.float32])
def test_capacities_are_those_of_the_file(tmp_path, number):
    capacities = {
        432802: {"computation": number(162.0), "communication": number(5648.109619)},
        1: {"computation": number(23.0), "communication": number(0.5)},
    }
    found = read_pickle(tmp_path, capacities, traces.read_fedscale_capacity)
    assert found.ms_per_example.tolist() == [162, 23]
    assert found.kbit_per_s.tolist() == [float(number(5648.109619)), 0.5]
    assert found.ms_per_example.dtype == found.kbit_per_s.dtype == np.float64
    assert "2105.11367" in found.source


@settings(deadline=None)
@given(
    st.sampled_from(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"]),
    st.sampled_from("<>"),
    st.integers(0, 127),
    st.sampled_from([3, 4, 5]),
)
def test_numpys_numbers_are_read_as_numpy_does(dtype, order, value, protocol):
    number = np.array([value], order + dtype)[0]
    content = pickle.dumps(number, protocol=protocol)
    found = traces._Unpickler(_Bytes(content), "x").load()
    assert found == value
    assert type(found) in (int, float)


class _Bytes:
    """A file in memory of which no more is asked than reading."""

    def __init__(self, content):
        self._content = content

    def read(self, count=-1):
        count = len(self._content) if count < 0 else count
        found, self._content = self._content[:count], self._content[count:]
        return found

    def readline(self):
        return self.read(self._content.index(b"\n") + 1)

    def readinto(self, buffer):
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"computation": 0.0, "communication": 1.0}, r"are \[0.0, 1.0\]; .* above 0"),
        ({"computation": 1.0, "communication": -2.0}, "above 0"),
        ({"computation": float("inf"), "communication": 1.0}, "computation is inf"),
        ({"computation": 1.0, "communication": None}, "communication is None"),
        ({"computation": 1.0}, "communication is missing"),
        ({"computation": 1.0, "communication": 1.0, "gpu": 2}, "'gpu' is unknown"),
    ],
)
def test_bad_capacities_are_refused_by_name(tmp_path, entry, said):
    good = {"computation": 1.0, "communication": 1.0}
    with pytest.raises(errors.DataError, match=f"client 5: .*{said}"):
        read_pickle(tmp_path, {4: good, 5: entry}, traces.read_fedscale_capacity)


# Ready is FLASH's word: locked, charging and on Wi-Fi; off at hour 2 and on at 3.
READY = (
    (0.0, "battery_charged_on"),
    (0.25, "WIFI"),
    (0.5, "57.0%"),
    (1.0, "screen_lock"),
    (2.0, "screen_unlock"),
    (3.0, "screen_lock"),
    (5.0, "Unknown"),
    (24.0, "100.0%"),
)


def test_flash_devices_are_on_while_locked_charging_and_on_wifi(tmp_path):
    trace = read_flash(tmp_path, {"0": device(*READY)})
    assert windows_of(trace) == [[(HOUR, 2 * HOUR), (3 * HOUR, 5 * HOUR)]]
    assert trace.period_s == DAY
    assert "2006.06983" in trace.source
    hours = np.array([0.5, 1, 2, 4, 5, 25.5])
    expected = [False, True, False, True, False, True]
    assert is_on(trace, 0, *hours * HOUR) == expected


@pytest.mark.parametrize(
    ("state", "stays"),
    [
        ("battery_charged_off", False),
        ("screen_unlock", False),
        ("2G", False),
        ("3g", False),
        ("4G", False),
        ("5G", False),
        ("unknown", False),
        ("screen_on", True),
        ("screen_off", True),
        ("12.5%", True),
    ],
)
def test_what_ends_readiness(tmp_path, state, stays):
    messages = (0, "wifi"), (0, "battery_charged_on"), (1, "screen_lock"), (2, state)
    trace = read_flash(tmp_path, {"0": device(*messages, (4, "0.0%"))})
    assert windows_of(trace)[0][0] == (HOUR, 4 * HOUR if stays else 2 * HOUR)


def on_in_flash(ready, first, last, time):
    """FLASH's rule: its record comes again and again, from its first message on."""
    time = (time - first) % (last - first) + first
    return any(start <= time < end for start, end in ready)


def test_a_flash_record_repeats_before_and_after_itself(tmp_path):
    late = [(hour + 30.5, state) for hour, state in READY[:-1]]
    trace = read_flash(tmp_path, {"0": device(*READY), "1": device(*late)})
    assert trace.period_s == 2 * DAY
    ready = [(31.5, 32.5), (33.5, 35.5)]
    assert set(windows_of(trace)[1]) > {(a * HOUR, b * HOUR) for a, b in ready}
    times = np.arange(0, 48, 0.1)
    expected = [on_in_flash(ready, 30.5, 35.5, time) for time in times]
    assert is_on(trace, 1, *times * HOUR) == expected


def test_flash_messages_are_sorted_by_time_and_instants_are_no_windows(tmp_path):
    shuffled = READY[4:] + READY[:4]
    trace = read_flash(tmp_path, {"0": device(*READY), "1": device(*shuffled)})
    assert windows_of(trace)[0] == windows_of(trace)[1]
    blink = *READY[:4], (1.0, "screen_unlock"), (24.0, "1%")
    trace = read_flash(tmp_path, {"0": device(*READY), "1": device(*blink)})
    assert windows_of(trace)[1] == []


def test_flash_devices_that_tell_nothing_are_left_out_and_counted(tmp_path):
    damaged = device(*READY)
    damaged["messages"] += "2020-01-29 00:00\twifi\n"
    garbled = device(*READY, (25, "x%"))
    no_day = {"messages": device(*READY)["messages"].replace("01-28", "02-31", 1)}
    two_tabs = device(*READY, (25, "wifi\twifi"))
    short = device((0, "wifi"), (0.5, "4g"))
    never = device((0, "wifi"), (9, "4G"))
    others = [damaged, garbled, no_day, two_tabs, short, {"messages": "\n"}, never]
    devices = {str(i): d for i, d in enumerate([*others, device(*READY)])}
    trace = read_flash(tmp_path, devices)
    assert trace.num_devices == 2
    assert windows_of(trace)[0] == []
    assert trace.source.endswith("6 of 8 devices left out")
    with pytest.raises(errors.DataError, match="no device with an hour of messages"):
        read_flash(tmp_path, {"0": damaged, "1": short})


def test_an_unknown_flash_state_is_refused_by_name(tmp_path):
    devices = {"0": device(*READY), "8": device(*READY, (30, "phone_on"))}
    said = "device '8': its state at 2020-01-29 06:00:00 is 'phone_on'"
    with pytest.raises(errors.DataError, match=said):
        read_flash(tmp_path, devices)


@pytest.mark.parametrize(
    "entry", [{}, [], {"messages": None}, {"messages": ["2020-01-28 00:00:00\twifi"]}]
)
def test_a_flash_device_without_messages_is_refused_by_name(tmp_path, entry):
    with pytest.raises(errors.DataError, match="device '8': it has no text `messages`"):
        read_flash(tmp_path, {"0": device(*READY), "8": entry})


def test_a_flash_clock_that_was_years_wrong_is_refused(tmp_path):
    wrong = device(*[(hour - 8_760 * 50, state) for hour, state in READY])
    with pytest.raises(errors.DataError, match="wrong clocks"):
        read_flash(tmp_path, {"0": device(*READY), "1": wrong})


def test_half_a_json_file_is_refused(tmp_path):
    whole = json.dumps({"0": device(*READY), "1": device(*READY)})
    for length in range(0, len(whole), 7):
        with pytest.raises(errors.DataError, match=r"state_traces\.json is no whole"):
            read_flash(tmp_path, whole[:length])
    with pytest.raises(errors.DataError, match="of no devices"):
        read_flash(tmp_path, "[1]")
    (tmp_path / "latin").write_bytes(b'{"0": "\xe9"}')
    with pytest.raises(errors.DataError, match="latin is no whole JSON"):
        traces.read_flash_availability(tmp_path / "latin")


def item(name, value):
    return f'<item name="{name}">{value}</item>'


def array(name, *values):
    inner = "".join(f"<value>{value}</value> <!-- a comment -->" for value in values)
    return f'<array name="{name}">{inner}</array>'


# A phone of four small cores and two big ones.
PHONE = {
    "battery.capacity": item("battery.capacity", 3000),
    "cpu.clusters.cores": array("cpu.clusters.cores", 4, 2),
    "cpu.idle": item("cpu.idle", 5),
    "cpu.active": item("cpu.active", 10),
    "cpu.cluster_power.cluster0": item("cpu.cluster_power.cluster0", 0),
    "cpu.cluster_power.cluster1": item("cpu.cluster_power.cluster1", 5),
    "cpu.core_power.cluster0": array("cpu.core_power.cluster0", 30, 100),
    "cpu.core_power.cluster1": array("cpu.core_power.cluster1", 50, 120, 250),
    "wifi.controller.rx": item("wifi.controller.rx", 100),
    "wifi.controller.tx": item("wifi.controller.tx", 400),
    "wifi.controller.voltage": item("wifi.controller.voltage", 4000),
    "modem.controller.rx": item("modem.controller.rx", 110),
    "modem.controller.tx": array("modem.controller.tx", 120, 160, 360),
}


def read_profile(folder, before="", **changed):
    """Reads `PHONE`, with items replaced; None leaves one out."""
    phone = {**PHONE, **changed}
    path = folder / "power_profile.xml"
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<!-- In mA. -->\n'
        f'{before}<device name="Android">'
        + "\n".join(text for text in phone.values() if text)
        + "</device>"
    )
    return traces.read_power_profile(path)


def test_power_is_current_times_voltage(tmp_path):
    found = read_profile(tmp_path)
    # 10 + 5 + 2 * 250 mA, and 10 + 5 + 250 mA, at 3.7 V.
    assert found.all_big_cores_watts == pytest.approx(1.9055)
    assert found.one_big_core_watts == pytest.approx(0.9805)
    # At 4 V, as it says.
    assert (found.wifi_receive_watts, found.wifi_send_watts) == (0.4, 1.6)
    assert found.wifi_volts == 4
    # At 3.7 V, for it says nothing.
    assert found.modem_volts == traces.NOMINAL_VOLTS == 3.7
    assert found.modem_receive_watts == pytest.approx(0.407)
    assert found.modem_send_watts == pytest.approx((0.444, 0.592, 1.332))
    assert found.battery_wh == pytest.approx(11.1)
    assert str(tmp_path / "power_profile.xml") in found.source


def test_the_pixel_4a_draws_two_watts_on_its_big_cores(tmp_path):
    # Of its profile in LineageOS' android_device_google_sunfish, six and two cores.
    pixel = {
        "cpu.clusters.cores": array("cpu.clusters.cores", 6, 2),
        "cpu.active": item("cpu.active", 8.4),
        "cpu.cluster_power.cluster1": item("cpu.cluster_power.cluster1", 2.2),
        "cpu.core_power.cluster0": array("cpu.core_power.cluster0", 34.55, 128.45),
        "cpu.core_power.cluster1": array("cpu.core_power.cluster1", 42.23, 266.21),
    }
    found = read_profile(tmp_path, **pixel)
    assert found.all_big_cores_watts == pytest.approx(2.009, abs=5e-4)
    assert found.one_big_core_watts == pytest.approx(1.024, abs=5e-4)


def test_a_voltage_of_zero_is_none(tmp_path):
    name = "wifi.controller.voltage"
    found = read_profile(tmp_path, **{name: item(name, 0)})
    assert found.wifi_volts == 3.7
    with pytest.raises(
        errors.DataError, match=r"voltage: it is 3\.7; needed: millivolt"
    ):
        read_profile(tmp_path, **{name: item(name, 3.7)})


OPTIONAL = ("cpu.idle", "cpu.cluster_power.cluster0", "wifi.controller.voltage")


@pytest.mark.parametrize("name", sorted({*PHONE} - {*OPTIONAL}))
def test_a_missing_item_is_an_error_that_names_it_never_zero(tmp_path, name):
    with pytest.raises(errors.DataError, match=rf"power_profile\.xml has no {name};"):
        read_profile(tmp_path, **{name: None})
    one = array(name) if PHONE[name].startswith("<array") else item(name, "")
    with pytest.raises(errors.DataError, match=name):
        read_profile(tmp_path, **{name: one})


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_not_needed_may_be_missing(tmp_path, name):
    assert read_profile(tmp_path, **{name: None}).all_big_cores_watts > 1.9


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("wifi.controller.rx", item("wifi.controller.rx", 0), "is '0'; needed: .* abo"),
        ("wifi.controller.tx", item("wifi.controller.tx", -1), "is '-1'"),
        ("battery.capacity", item("battery.capacity", "large"), "is 'large'"),
        ("battery.capacity", item("battery.capacity", "nan"), "is 'nan'"),
        ("battery.capacity", 2 * item("battery.capacity", 1), "is given 2 times"),
        ("cpu.active", array("cpu.active", 1, 2), "is an array; needed: an item"),
        ("cpu.active", item("cpu.active", -1), "is '-1'; needed: a number from 0"),
        (
            "modem.controller.tx",
            item("modem.controller.tx", 3),
            "is an item; needed: an array",
        ),
        ("modem.controller.tx", array("modem.controller.tx", 3, 0), "is '0'"),
    ],
)
def test_a_bad_item_is_an_error_that_names_it(tmp_path, name, text, said):
    with pytest.raises(
        errors.DataError, match=rf"power_profile\.xml: {name}: it {said}"
    ):
        read_profile(tmp_path, **{name: text})


def test_a_document_type_is_refused(tmp_path):
    (tmp_path / "secret").write_text("77")
    bomb = '<!DOCTYPE device [<!ENTITY a "1"><!ENTITY b "&a;&a;">]>'
    outside = f'<!DOCTYPE device [<!ENTITY b SYSTEM "file://{tmp_path}/secret">]>'
    for before in (bomb, outside, "<!DOCTYPE device>"):
        with pytest.raises(errors.DataError, match="has a document type"):
            read_profile(tmp_path, before, **{"cpu.active": item("cpu.active", "&b;")})
    # In another encoding it would not be seen.
    path = tmp_path / "utf16.xml"
    path.write_bytes(f"{bomb}<device/>".encode("utf-16"))
    with pytest.raises(errors.DataError, match=r"utf16\.xml is not in UTF-8"):
        traces.read_power_profile(path)
    with pytest.raises(errors.DataError, match="is no whole XML"):
        read_profile(tmp_path, **{"cpu.active": item("cpu.active", "&b;")})


def test_half_an_xml_file_is_refused(tmp_path):
    read_profile(tmp_path)
    path = tmp_path / "power_profile.xml"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 11):
        path.write_bytes(whole[:length])
        with pytest.raises(errors.DataError, match="is no whole XML file"):
            traces.read_power_profile(path)


# The windows of devices, in whole seconds; they never touch.
windows = st.sets(st.integers(0, 10**6), max_size=12).map(
    lambda times: list(zip(sorted(times)[::2], sorted(times)[1::2], strict=False))
)
fleets = st.lists(windows, min_size=1, max_size=6).filter(any)


@settings(max_examples=60, deadline=None)
@given(fleets, st.sampled_from([0, 2, 3, 4]))
def test_windows_survive_a_pickle_and_a_file(tmp_path_factory, fleet, protocol):
    folder = tmp_path_factory.mktemp("fleet")
    clients = {i: client(*w, finish_time=10**6) for i, w in enumerate(fleet)}
    trace = read_pickle(folder, pickle.dumps(clients, protocol=protocol))
    assert windows_of(trace) == fleet
    trace.save(folder / "new" / "trace.npz")
    again = traces.Trace.load(folder / "new" / "trace.npz")
    assert windows_of(again) == fleet
    assert (again.period_s, again.source) == (trace.period_s, trace.source)
    for number, device_windows in enumerate(fleet):
        for start, end in device_windows:
            expected = [True, True, False, True]
            times = start, (start + end) / 2, end, start + 3 * 10**6
            whole_day = end == 10**6 and device_windows[0][0] == 0
            if not whole_day:
                assert is_on(again, number, *times) == expected


@settings(max_examples=60, deadline=None)
@given(fleets)
def test_windows_survive_flash(tmp_path_factory, fleet):
    folder = tmp_path_factory.mktemp("flash")
    ends = [(0, "battery_charged_on"), (0, "wifi"), (10**6, "50.0%")]
    devices = {
        str(i): device(
            *((s / HOUR, state) for s, state in ends[:2]),
            *(
                (time / HOUR, state)
                for start, end in w
                for time, state in ((start, "screen_lock"), (end, "screen_unlock"))
            ),
            (10**6 / HOUR, "50.0%"),
        )
        for i, w in enumerate(fleet)
    }
    trace = read_flash(folder, devices)
    assert trace.period_s == 12 * DAY
    for found, given_windows in zip(windows_of(trace), fleet, strict=True):
        recorded = [w for w in found if w[0] < 10**6]
        # One that goes on into the record's repetition is longer.
        assert [w[0] for w in recorded] == [w[0] for w in given_windows]
        assert [min(w[1], 10**6) for w in recorded] == [w[1] for w in given_windows]


def test_a_trace_is_not_changed_by_whom_it_came_from():
    starts = np.array([1.0])
    trace = traces.Trace(np.array([0, 1]), starts, np.array([2.0]), 10, "here")
    starts[0] = 5
    assert trace.starts.tolist() == [1]
    with pytest.raises(ValueError, match="read-only"):
        trace.starts[0] = 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"offsets": [0]}, "do not fit"),
        ({"offsets": [1, 2]}, "do not fit"),
        ({"offsets": [0, 2, 1, 2]}, "do not fit"),
        ({"offsets": [0, 3]}, "do not fit"),
        ({"ends": [1.0]}, "do not fit"),
        ({"period_s": float("inf")}, "do not fit"),
        ({"starts": [0.0, 0.5]}, "Device 0 .* overlap or touch"),
        ({"starts": [0.0, 1.0]}, "Device 0 .* overlap or touch"),
        ({"ends": [1.0, 2.0]}, "Device 0 .* ends before"),
        ({"ends": [1.0, float("nan")]}, "Device 0"),
        ({"ends": [1.0, 11.0]}, "Device 0 .* outside"),
        ({"offsets": [0, 0], "starts": [], "ends": []}, "No device .* here is ever on"),
    ],
)
def test_an_inconsistent_trace_is_refused(tmp_path, changed, said):
    good = {
        "offsets": [0, 2],
        "starts": [0.0, 2.0],
        "ends": [1.0, 3.0],
        "period_s": 10.0,
        "source": "here",
    }
    bad = good | changed
    with pytest.raises(errors.DataError, match=said):
        traces.Trace(**bad)
    path = tmp_path / "trace.npz"
    dtypes = {"offsets": np.int64, "starts": float, "ends": float}
    np.savez(path, **{k: np.array(v, dtypes.get(k)) for k, v in bad.items()})
    with pytest.raises(errors.DataError, match=rf"trace\.npz is damaged.*{said}"):
        traces.Trace.load(path)


def saved(folder):
    trace = read_pickle(folder, {1: REAL, 2: client((5, 10))})
    trace.save(folder / "trace.npz")
    return folder / "trace.npz"


def test_a_half_written_trace_is_refused(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(errors.DataError, match=r"trace\.npz is damaged"):
            traces.Trace.load(path)


def test_a_trace_of_other_arrays_is_refused_and_objects_are_not_unpickled(tmp_path):
    path, trap = tmp_path / "trace.npz", tmp_path / "ran"
    with np.load(saved(tmp_path)) as found:
        good = dict(found)
    harmful = np.array([Runs(os.system, f"touch {trap}")], object)
    for name in good:
        for bad in (None, harmful, good[name].astype("S20")):
            arrays = {k: v for k, v in {**good, name: bad}.items() if v is not None}
            np.savez(path, **arrays)
            with pytest.raises(errors.DataError, match=r"trace\.npz is damaged"):
                traces.Trace.load(path)
    with open(path, "wb") as file:
        np.save(file, good["starts"])
    with pytest.raises(errors.DataError, match=r"trace\.npz is damaged"):
        traces.Trace.load(path)
    assert not trap.exists()


def test_a_flipped_byte_of_the_times_is_noticed(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<d", 12788.0)) + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match="Bad CRC"):
        traces.Trace.load(path)


def test_a_write_that_fails_leaves_the_old_trace(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    trace = traces.Trace.load(path)
    with pytest.raises(OSError, match="No space"):
        trace.save(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "client_behave_trace",
        "trace.npz",
    ]

"""What a run keeps on disk: it comes back bit for bit, or is known to be damaged."""

import asyncio
import collections
import contextlib
import csv
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import warnings
import zipfile
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
import tensorflow_federated as tff
import tree
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.helpers import told_tensorboard
from tff_perfedavg import errors
from tff_perfedavg.experiments.files import trained_model
from tff_perfedavg.experiments.files.checkpoints import CheckpointManager
from tff_perfedavg.experiments.files.metrics_log import LinesFile, MetricsLog
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.files import remove_unfinished

STATE = collections.OrderedDict(weights=(np.arange(6.0).reshape([2, 3]),), round=7)


class Pair(NamedTuple):
    first: Any
    second: Any


@attrs.define
class Node:
    global_model_weights: Any
    finalizer: Any


@contextlib.contextmanager
def no_file_larger_than(num_bytes):
    # The kernel refuses to let a file grow further, as it does on a full disk.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


# ------------------------------------------------------------------ checkpoints


dtypes = st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.bool_])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))
)
leaves = st.one_of(
    arrays,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.binary(max_size=5),
    st.text(max_size=5),
)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner),
        st.lists(inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Node, inner, inner),
        st.dictionaries(st.text("abc"), inner, max_size=3).map(collections.OrderedDict),
    ),
    max_leaves=6,
)


def blank(leaf):
    return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else type(leaf)()


def assert_same_bits(actual, expected):
    if isinstance(expected, (str, bytes)):
        assert actual == expected
        return
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


@settings(max_examples=200, deadline=None)
@given(state=states)
def test_a_state_comes_back_bit_for_bit(tmp_path_factory, state):
    checkpoints = CheckpointManager(tmp_path_factory.mktemp("run"))
    notes = {"positions": {"rounds": 3}, "best": None, "seconds": 0.1}
    checkpoints.write(state, 12, notes)
    saved = checkpoints.latest_whole()
    assert (saved.version, saved.notes) == (12, notes)
    found = saved.state(tree.map_structure(blank, state))
    tree.assert_same_structure(found, state)
    for actual, expected in zip(tree.flatten(found), tree.flatten(state), strict=True):
        assert_same_bits(actual, expected)


def test_every_bit_pattern_of_not_a_number_is_kept(tmp_path):
    bits = np.array([0x7FC00000, 0xFFC00001, 0x7F800001, 0x80000000], np.uint32)
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.write([bits.view(np.float32)], 1)
    (found,) = checkpoints.read(1).state([np.zeros([4], np.float32)])
    assert np.array_equal(found.view(np.uint32), bits)


@pytest.mark.parametrize("leaf", [None, object(), 2**70, np.array([None])])
def test_what_would_not_come_back_is_not_saved(tmp_path, leaf):
    with pytest.raises(errors.CheckpointError, match=rf"{type(leaf).__name__}; a stat"):
        CheckpointManager(tmp_path).write([1, leaf], 1)
    assert not names_in(tmp_path)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path, keep):
    checkpoints = CheckpointManager(tmp_path / "run", keep)
    assert checkpoints.versions() == []
    assert checkpoints.latest_whole() is None
    # In the order of numbers, not of names.
    for version in (2, 9, 10, 11, 100, 10**11):
        checkpoints.write(STATE, version)
    assert checkpoints.versions() == [10**11, 100, 11][:keep][::-1]
    assert len(names_in(tmp_path / "run")) == keep


def test_none_kept_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match="checkpoints_kept is 0"):
        CheckpointManager(tmp_path, 0)


def test_what_was_just_written_is_kept_whatever_is_left_of_later_versions(tmp_path):
    for version in (3, 6):
        CheckpointManager(tmp_path).write(STATE, version)
    checkpoints = CheckpointManager(tmp_path, 1)
    checkpoints.path(6).write_bytes(b"")
    checkpoints.write(STATE, 4)
    with pytest.warns(UserWarning, match="0000000006"):
        assert checkpoints.latest_whole().version == 4


def test_other_files_are_no_versions(tmp_path):
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.write(STATE, 5)
    for name in ("model.npz", "state_x.ckpt", "state_7.ckpt.unfinished", "lock"):
        (tmp_path / name).touch()
    assert checkpoints.versions() == [5]


def test_every_truncation_and_every_flipped_byte_is_known(tmp_path):
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.write(STATE, 1)
    path = checkpoints.path(1)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(len(content)):
        flipped = bytes([content[i] ^ rng.integers(1, 256)])
        for damaged in (content[:i], content[:i] + flipped + content[i + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(errors.CheckpointError, match=f"{path} is damaged"):
                checkpoints.read(1)
    path.write_bytes(content)
    assert checkpoints.read(1).version == 1


@settings(max_examples=30, deadline=None)
@given(
    where=st.floats(0, 1, exclude_max=True),
    damage=st.sampled_from(["cut", "flipped", "longer"]),
    num_damaged=st.integers(1, 2),
)
def test_a_damaged_version_is_named_and_the_one_before_it_used(
    tmp_path_factory, where, damage, num_damaged
):
    checkpoints = CheckpointManager(tmp_path_factory.mktemp("run"))
    for version in (3, 6, 9):
        checkpoints.write(version, version)
    for version in (9, 6)[:num_damaged]:
        path = checkpoints.path(version)
        content = bytearray(path.read_bytes())
        offset = int(where * len(content))
        if damage == "cut":
            del content[offset:]
        elif damage == "flipped":
            content[offset] ^= 1
        else:
            content.append(0)
        path.write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        saved = checkpoints.latest_whole()
    assert saved.state(0) == saved.version == (6, 3)[num_damaged - 1]
    assert [re.search(r"(\d)\.ckpt is damaged", str(w.message))[1] for w in told] == [
        "9",
        "6",
    ][:num_damaged]


def test_where_none_is_whole_the_remedy_is_told(tmp_path):
    checkpoints = CheckpointManager(tmp_path)
    for version in (1, 2):
        checkpoints.write(STATE, version)
        checkpoints.path(version).write_bytes(b"PFACKPT1")
    with (
        pytest.warns(UserWarning, match=r"state_0000000002\.ckpt is damaged"),
        pytest.warns(UserWarning, match=r"state_0000000001\.ckpt is damaged"),
        pytest.raises(errors.CheckpointError, match=r"None of the 2 .*--noresume"),
    ):
        checkpoints.latest_whole()


def test_a_version_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"state_0000000004\.ckpt cannot"):
        CheckpointManager(tmp_path).read(4)


@pytest.mark.parametrize(
    "other",
    [
        [np.zeros([2, 3], np.float32), 1],
        [np.zeros([3, 2]), 1],
        [np.zeros([2, 3]), 1.0],
        [np.zeros([2, 3]), "1"],
        [np.zeros([2, 3])],
        [np.zeros([2, 3]), 1, 1],
    ],
)
def test_the_state_of_another_program_is_refused_by_name(tmp_path, other):
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.write(STATE, 4)
    with pytest.raises(errors.CheckpointError, match=r"04\.ckpt holds the state of an"):
        checkpoints.read(4).state(other)


def test_a_full_disk_is_told_and_the_version_before_stays(tmp_path):
    checkpoints = CheckpointManager(tmp_path)
    with (
        no_file_larger_than(10_000),
        pytest.raises(errors.CheckpointError, match=r"01\.ckpt could.*\)\. Free some"),
    ):
        checkpoints.write(np.zeros([5000]), 1)
    assert not names_in(tmp_path)

    checkpoints.write(STATE, 1)
    with (
        no_file_larger_than(10_000),
        pytest.raises(
            errors.CheckpointError,
            match=r"02\.ckpt could not be written \(File too large\).*"
            r"01\.ckpt is whole; free some space",
        ),
    ):
        checkpoints.write(np.zeros([5000]), 2)
    assert names_in(tmp_path) == [checkpoints.path(1).name]
    assert checkpoints.latest_whole().version == 1


WRITE_HALF = """
import os, pathlib, sys, time
import numpy as np
from tff_perfedavg.experiments.files.checkpoints import CheckpointManager

def wait(descriptor):
    os.ftruncate(descriptor, 1000)
    print("half", flush=True)
    time.sleep(60)

os.fsync = wait
CheckpointManager(pathlib.Path(sys.argv[1])).write(np.zeros([5000]), 2)
"""


def test_a_killed_writer_leaves_the_version_before_whole(tmp_path):
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.write(STATE, 1)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_HALF, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert writer.stdout.readline() == b"half\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert len(names_in(tmp_path)) == 2
    assert checkpoints.latest_whole().version == 1
    remove_unfinished(tmp_path)
    assert names_in(tmp_path) == [checkpoints.path(1).name]


class Reference(tff.program.MaterializableValueReference):
    """What a program has of a value that is still being computed."""

    type_signature = tff.TensorType(np.float32, [2])

    async def get_value(self):
        return np.array([1, 2], np.float32)


def test_it_serves_tffs_own_programs(tmp_path):
    async def program():
        manager: tff.program.ProgramStateManager = CheckpointManager(tmp_path, keep=2)
        assert await manager.get_versions() is None
        assert await manager.load_latest(STATE) == (None, 0)
        with pytest.raises(tff.program.ProgramStateNotFoundError):
            await manager.load(1, STATE)

        for version in (1, 2, 3):
            await manager.save({"weights": Reference(), "round": version}, version)
        assert await manager.get_versions() == [2, 3]
        with pytest.raises(tff.program.ProgramStateExistsError):
            await manager.save(STATE, 3)
        with pytest.raises(tff.program.ProgramStateNotFoundError):
            await manager.load(1, STATE)

        like = {"weights": np.zeros([2], np.float32), "round": 0}
        assert (await manager.load(2, like))["round"] == 2
        state, version = await manager.load_latest(like)
        assert version == state["round"] == 3
        assert state["weights"].tolist() == [1, 2]

        await manager.remove_all()
        assert await manager.get_versions() is None

    asyncio.run(program())


# ------------------------------------------------------------------ models


def test_every_flipped_byte_of_a_model_is_known_or_changes_nothing(tmp_path):
    path = tmp_path / "model.npz"
    weights = [np.arange(3, dtype=np.float32), np.ones([2, 1], np.float32)]
    experiment = Experiment(total_rounds=7)
    trained_model.save(path, weights, experiment)
    content = path.read_bytes()
    # Every bit of what describes the members; of their content, which has a checksum,
    # one bit in some bytes.
    with zipfile.ZipFile(path) as archive:
        inside = set()
        for part in archive.infolist():
            start = content.index(b"\x93NUMPY", part.header_offset)
            inside |= set(range(start, start + part.compress_size))
    told = []
    for i in range(len(content)):
        if i in inside and i % 5:
            continue
        for bit in [i % 8] if i in inside else range(8):
            flipped = bytes([content[i] ^ (1 << bit)])
            path.write_bytes(content[:i] + flipped + content[i + 1 :])
            try:
                found, settings = trained_model.load(path)
            except errors.CheckpointError as e:
                told.append(str(e))
                continue
            assert settings == experiment
            assert [w.tobytes() for w in found] == [w.tobytes() for w in weights]
    assert len(told) > len(inside) / 5
    assert all(str(path) in message for message in told)


# ------------------------------------------------------------------ metrics


def test_lines_are_cut_back_to_where_they_were(tmp_path):
    path = tmp_path / "deep" / "lines"
    file = LinesFile(path, 0)
    file.write("one")
    position = file.sync()
    assert path.stat().st_size == position == 4
    file.write("ü")
    assert file.sync() == 7
    file.write("not synced")
    file.close()

    file = LinesFile(path, position)
    file.write("two")
    assert file.sync() == 8
    file.close()
    assert path.read_text() == "one\ntwo\n"

    LinesFile(path, 0).close()
    assert path.read_bytes() == b""


def test_lines_that_are_missing_are_refused_by_name(tmp_path):
    path = tmp_path / "lines"
    with pytest.raises(errors.CheckpointError, match=f"{path} has 0 bytes .* of 5;"):
        LinesFile(path, 5)
    assert not path.exists()
    path.write_bytes(b"one\n")
    with pytest.raises(errors.CheckpointError, match=f"{path} has 4 bytes .* of 5;"):
        LinesFile(path, 5)
    assert path.read_bytes() == b"one\n"


TEXTS = (MetricsLog.ROUNDS, MetricsLog.EVALUATIONS, MetricsLog.EVENTS)


def open_log(directory, positions):
    return MetricsLog({n: directory / n for n in TEXTS}, directory / "tb", positions)


def add(log, rounds):
    for i in rounds:
        log.add_round(i, {"loss": math.nan if i == 1 else 1 / (i + 1), "users": i})
        if i % 2:
            rows = [
                {"users": users, "step": step, "accuracy": 0.1 * i, "loss": 1 / 3}
                for users in ("seen", "new")
                for step in (0, 1)
            ]
            log.add_evaluation(i + 1, rows)


def test_all_three_forms_hold_what_was_logged(tmp_path):
    log = open_log(tmp_path, {})
    add(log, range(4))
    log.close()

    with open(tmp_path / MetricsLog.ROUNDS) as file:
        rounds = list(csv.DictReader(file))
    assert [row["round_num"] for row in rounds] == ["0", "1", "2", "3"]
    assert [row["users"] for row in rounds] == ["0", "1", "2", "3"]
    # Every digit, so that what is read is what was logged.
    assert [float(row["loss"]) for row in rounds[::2]] == [1.0, 1 / 3]
    assert rounds[1]["loss"] == "nan"

    with open(tmp_path / MetricsLog.EVALUATIONS) as file:
        evaluations = list(csv.DictReader(file))
    assert len(evaluations) == 2 * 4
    assert evaluations[-1] == {
        "round_num": "4",
        "users": "new",
        "step": "1",
        "accuracy": str(0.1 * 3),
        "loss": str(1 / 3),
    }

    lines = (tmp_path / MetricsLog.EVENTS).read_text().splitlines()
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [e["round_num"] for e in events] == [0, 1, 2, 2, 3, 4]
    assert events[1]["training"] == {"loss": None, "users": 1}
    assert events[-1]["evaluation"][2]["users"] == "new"

    told = told_tensorboard(tmp_path / "tb")
    assert told["training/loss", 2] == np.float32(1 / 3)
    assert math.isnan(told["training/loss", 1])
    assert told["evaluation/new/accuracy/1", 4] == np.float32(0.3)
    assert len(told) == 4 * 2 + 2 * 4 * 2


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_a_log_cut_back_and_told_again_is_the_log_of_one_go(tmp_path, kept):
    log = open_log(tmp_path / "once", {})
    add(log, range(6))
    log.close()

    log = open_log(tmp_path / "twice", {})
    add(log, range(kept))
    positions = log.sync() if kept else {}
    add(log, range(kept, 5))
    log.close()
    log = open_log(tmp_path / "twice", json.loads(json.dumps(positions)))
    add(log, range(kept, 6))
    log.close()

    for name in TEXTS:
        once, twice = (tmp_path / d / name for d in ("once", "twice"))
        assert twice.read_bytes() == once.read_bytes()
    once, twice = (told_tensorboard(tmp_path / d / "tb") for d in ("once", "twice"))
    np.testing.assert_equal(twice, once)


def test_a_disk_that_takes_no_more_lines_is_told_by_name(tmp_path):
    path = tmp_path / "lines"
    file = LinesFile(path, 0)
    file.write("one")
    position = file.sync()
    message = rf"{path} could not be written \(File too large\).*same command again"
    with no_file_larger_than(10_000):
        file.write("x" * 6000)
        file.write("x" * 6000)
        with pytest.raises(errors.CheckpointError, match=message):
            file.sync()
        with pytest.raises(errors.CheckpointError, match=message):
            file.close()
    LinesFile(path, position).close()
    assert path.read_text() == "one\n"


def test_a_disk_that_takes_no_more_events_is_told_by_name(tmp_path):
    log = open_log(tmp_path, {})
    message = rf"{tmp_path / 'tb'} could not be written \(.*File too large\)"
    # TensorBoard's files are by far the largest of the four.
    with (
        no_file_larger_than(10_000),
        pytest.raises(errors.CheckpointError, match=message),
    ):
        log.add_round(0, {f"loss{i}": 1.0 for i in range(450)})
    log.close()
    assert (tmp_path / MetricsLog.EVENTS).stat().st_size < 10_000

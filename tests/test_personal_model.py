"""A user's model on a device: guarded, bounded, and kept over versions and crashes."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tff_perfedavg as pfa
from tff_perfedavg import errors
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore
from tff_perfedavg.experiments.deploy import guard
from tff_perfedavg.models.dense import mlp
from tff_perfedavg.ondevice import personal
from tff_perfedavg.ondevice.config import ExportConfig
from tff_perfedavg.ondevice.examples import Examples, held_back, in_turns
from tff_perfedavg.ondevice.export import export_tflite
from tff_perfedavg.ondevice.runner import OnDeviceModel

MODEL = mlp((4,), 3, hidden=(6,))
CENTERS = 2.0 * np.random.default_rng(7).normal(size=[3, 4])
RATE = 0.2


def rows_of(user, per_class=6, noise=0.7):
    """A user's rows: classes about centers that are moved a little for each user."""
    rng = np.random.default_rng(user)
    y = np.tile(np.arange(3), per_class)
    moved = CENTERS + 0.5 * rng.normal(size=CENTERS.shape)
    x = moved[y] + noise * rng.normal(size=[len(y), 4])
    return x.astype(np.float32), y.astype(np.int32)


def loss_of(device, x, y):
    """Cross-entropy from the answers alone, in float64."""
    p = device.infer(x).astype(np.float64)
    return -np.log(p[np.arange(len(y)), y]).mean()


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Files of version 1, whose model knows nothing, and 2, which knows the centers."""
    directory = tmp_path_factory.mktemp("versions")
    first, later = MODEL.init(1), MODEL.init(2)
    files = []
    for number, weights in enumerate((first, later), 1):
        path = directory / f"v{number}.tflite"
        config = ExportConfig(
            batch_size=8, max_local_steps=0, family="centers", version=number
        )
        card = {"inner_learning_rate": RATE}
        if number == 2:
            # Adapted to some users by the first file itself.
            device = OnDeviceModel(files[0])
            device.set_weights(weights)
            for step in range(60):
                x, y = rows_of(1000 + step)
                device.adapt(x[:8], y[:8], 0.1)
            weights = device.weights
        export_tflite(MODEL, weights, path, config, card=card)
        files.append(path)
    return files


@pytest.fixture
def device(versions):
    return OnDeviceModel(versions[0])


# ------------------------------------------------------------------------- the guard


def test_the_best_step_on_the_rows_held_back_is_kept(device):
    x, y = rows_of(0)
    is_check = held_back(y)
    learn, check = (x[~is_check], y[~is_check]), (x[is_check], y[is_check])
    tried = [loss_of(device, *check)]
    by_hand = OnDeviceModel(device._path)
    kept = [by_hand.weights]
    for _ in range(20):
        # In turns of the classes, as many as fit a batch, one batch a step.
        order = in_turns(learn[1])
        halves = np.array_split(order, 2)
        rows = halves[(len(tried) - 1) % 2]
        before = by_hand.weights
        by_hand.adapt(learn[0][rows], learn[1][rows], RATE)
        if loss_of(by_hand, *check) >= tried[-1]:
            by_hand.set_weights(before)
        tried.append(min(tried[-1], loss_of(by_hand, *check)))
        kept.append(by_hand.weights)
    report = device.adapt_guarded(x, y)
    assert (report.num_rows, report.num_check_rows) == (12, 6)
    assert report.loss_before == pytest.approx(tried[0], rel=1e-5)
    assert report.loss_after == pytest.approx(tried[-1], rel=1e-4)
    assert report.loss_after == pytest.approx(loss_of(device, *check), rel=1e-5)
    assert all(
        np.allclose(a, b, atol=1e-5)
        for a, b in zip(device.weights, kept[-1], strict=True)
    )


@pytest.mark.parametrize("rate", [0.05, 0.5, 3.0])
def test_in_one_call_the_weights_are_those_after_the_best_step(device, rate):
    x, y = rows_of(3)
    learn, check = (x[:8], y[:8]), (x[8:16], y[8:16])
    losses, weights = [loss_of(device, *check)], [device.weights]
    by_hand = OnDeviceModel(device._path)
    for _ in range(15):
        by_hand.adapt(*learn, rate)
        losses.append(loss_of(by_hand, *check))
        weights.append(by_hand.weights)
    report = device.adapt_guarded(*learn, check=check, learning_rate=rate, num_steps=15)
    best = int(np.argmin(losses))
    assert report.steps_kept == best
    assert report.loss_after == pytest.approx(losses[best], rel=1e-4)
    assert all(
        np.allclose(a, b, atol=1e-4)
        for a, b in zip(device.weights, weights[best], strict=True)
    )


@pytest.mark.parametrize("rate", [1e3, 1e10, 1e30])
def test_steps_that_only_hurt_change_nothing(device, rate):
    x, y = rows_of(4)
    before = device.weights
    # The labels to learn are wrong, so that no step helps.
    report = device.adapt_guarded(
        x[:6], (y[:6] + 1) % 3, check=(x[6:], y[6:]), learning_rate=rate
    )
    assert report.steps_kept == 0
    assert report.loss_after == report.loss_before
    assert all(
        np.array_equal(a, b) for a, b in zip(before, device.weights, strict=True)
    )


def test_a_step_not_finite_is_told_and_none_is_kept_without_rows(device):
    x, y = rows_of(5)
    one = {"learning_rate": np.array([1e30], np.float32)}
    rows = {"x": x[:8], "y": y[:8], "x_check": x[8:16], "y_check": y[8:16]}
    answer = device.call(
        "adapt_guarded", **rows, **one, num_steps=np.array([3], np.int32)
    )
    assert answer["losses"][1] == np.float32(1e38)
    assert answer["losses"][4] == -1.0
    for nothing in ("y", "y_check"):
        empty = {**rows, nothing: np.full(8, -1, np.int32)}
        answer = device.call(
            "adapt_guarded", **empty, **one, num_steps=np.array([3], np.int32)
        )
        assert answer["applied"][0] == answer["steps_kept"][0] == 0
    for number in (0, -1, 21, 2**31 - 1):
        answer = device.call(
            "adapt_guarded", **rows, **one, num_steps=np.array([number], np.int32)
        )
        assert answer["applied"][0] == 0
        assert (answer["losses"][1:] == -1.0).all()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda d, x, y: d.adapt_guarded(x, y, num_steps=21),
            errors.ConfigError,
            "from 1 to 20",
        ),
        (
            lambda d, x, y: d.adapt_guarded(x, y, learning_rate=-1),
            errors.ConfigError,
            "learning_rate is -1",
        ),
        (
            lambda d, x, y: d.adapt_guarded(x[:3], y[:3]),
            errors.DataError,
            "no row to check on. Give two",
        ),
        (
            lambda d, x, y: d.adapt_guarded(x[:0], y[:0], check=(x, y)),
            errors.DataError,
            "no row to learn",
        ),
        (
            lambda d, x, y: d.adapt_guarded(x, y[:4]),
            errors.DataError,
            "18 rows and y has 4",
        ),
        (
            lambda d, x, y: d.adapt_guarded(x, y, check=(x, y[:4])),
            errors.DataError,
            "y has 4",
        ),
        (lambda d, x, y: d.check_loss(x, y), errors.DataError, "takes 1 to 8"),
    ],
)
def test_bad_calls_are_told(device, call, kind, message):
    with pytest.raises(kind, match=message):
        call(device, *rows_of(0))


def test_a_file_without_the_guard_says_so(tmp_path):
    path = tmp_path / "plain.tflite"
    config = ExportConfig(batch_size=4, max_local_steps=0, max_guarded_steps=0)
    export_tflite(MODEL, MODEL.init(0), path, config)
    device = OnDeviceModel(path)
    assert "adapt_guarded" not in device.signatures
    with pytest.raises(errors.ModelError, match="max_guarded_steps of at least 1"):
        device.adapt_guarded(*rows_of(0))


def test_one_row_needs_no_leading_axis(device):
    x, y = rows_of(0)
    assert np.array_equal(device.infer(x[0]), device.infer(x[:1])[0])
    other = OnDeviceModel(device._path)
    assert device.adapt(x[0], y[0], 0.1) == other.adapt(x[:1], y[:1], 0.1)
    assert device.adapt(x[0], int(y[0]), 0.1) == other.adapt(x[:1], y[:1], 0.1)


# ---------------------------------------------------------------------- the examples


def empty(capacity):
    return Examples(capacity, np.zeros([0, 2], np.float32), np.zeros(0, np.int32))


@settings(max_examples=200, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=60),
    capacity=st.integers(2, 20),
)
def test_the_buffer_is_bounded_balanced_and_keeps_the_newest(labels, capacity):
    kept = empty(capacity)
    for number, label in enumerate(labels):
        kept.add(np.full([1, 2], number, np.float32), np.array([label], np.int32))
    learn, check = kept.to_learn(), kept.to_check()
    assert len(kept) == len(learn.y) + len(check.y) == min(len(labels), capacity)
    numbers = np.concatenate([learn.x[:, 0], check.x[:, 0]]).astype(int)
    given_labels = np.array(labels, int)
    held = np.concatenate([learn.y, check.y])
    assert np.array_equal(held, given_labels[numbers])
    # No class has given way to one that has more than it, by more than one row.
    counts = np.bincount(held, minlength=5)
    came = np.bincount(given_labels, minlength=5)
    for label in range(5):
        if counts[label] < came[label]:
            assert counts[label] >= counts.max() - 1
    for label in range(5):
        of_label = np.sort(numbers[held == label])
        for rows in (learn, check):
            # Of each side the newest are kept.
            mine = np.sort(rows.x[rows.y == label][:, 0].astype(int))
            every = [
                n
                for i, n in enumerate(np.flatnonzero(given_labels == label))
                if (i % 3 == 1) == (rows is check)
            ]
            assert list(mine) == every[len(every) - len(mine) :]
        assert len(of_label) == counts[label]


def test_a_row_stays_on_its_side():
    kept = empty(30)
    sides = {}
    for number in range(200):
        kept.add(np.full([1, 2], number, np.float32), np.array([number % 3], np.int32))
        for side, rows in (("learn", kept.to_learn()), ("check", kept.to_check())):
            for row in rows.x[:, 0]:
                assert sides.setdefault(row, side) == side
    # A third of each class's ten.
    assert len(kept.to_check().y) in (9, 10)


def test_examples_are_saved_whole(tmp_path):
    path = tmp_path / "examples.bin"
    kept = empty(10)
    kept.add(
        np.random.default_rng(0).normal(size=[14, 2]).astype(np.float32),
        np.arange(14, dtype=np.int32) % 4,
    )
    kept.save(path)
    assert path.stat().st_mode & 0o077 == 0
    again = empty(10)
    again.load(path)
    for one, other in (
        (kept.to_learn(), again.to_learn()),
        (kept.to_check(), again.to_check()),
    ):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.y, other.y)
    smaller = empty(4)
    smaller.load(path)
    assert len(smaller) == 4
    content = path.read_bytes()
    for place in range(0, len(content), 37):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        )
        with pytest.raises(errors.CheckpointError, match="damaged or was cut short"):
            empty(10).load(path)
    path.write_bytes(content[:-5])
    with pytest.raises(errors.CheckpointError, match="cut short"):
        empty(10).load(path)
    path.write_bytes(content)
    other = Examples(10, np.zeros([0, 3], np.float32), np.zeros(0, np.int32))
    with pytest.raises(
        errors.CheckpointError, match=r"shape \[2\]; the model takes \[3\]"
    ):
        other.load(path)


def test_no_room_is_refused():
    with pytest.raises(errors.ConfigError, match="capacity is 1"):
        empty(1)


# ------------------------------------------------------------------------- versions


def test_twenty_users_end_at_least_as_well_with_a_new_version(versions, tmp_path):
    adopted = 0
    for user in range(20):
        mine = pfa.PersonalModel(tmp_path / str(user), versions[0])
        mine.add(*rows_of(user))
        first = mine.adapt()
        check = mine.examples.to_check()
        before = loss_of(mine.device, *check)
        assert first.loss_after == pytest.approx(before, rel=1e-5)
        del mine
        updated = pfa.PersonalModel(tmp_path / str(user), versions[1])
        assert updated.version == 1
        assert loss_of(updated.device, *check) == pytest.approx(before, rel=1e-6)
        report = updated.adapt()
        after = loss_of(updated.device, *check)
        assert after <= before * (1 + 1e-6)
        assert report.adopted == (2 if updated.version == 2 else None)
        adopted += updated.version == 2
        again = pfa.PersonalModel(tmp_path / str(user))
        assert again.version == updated.version
        assert loss_of(again.device, *check) == pytest.approx(after, rel=1e-6)
    # The second version knows the classes, so most are better off with it.
    assert adopted >= 10


def test_a_version_that_is_worse_waits_and_is_tried_again(versions, tmp_path, device):
    # The second file first: the first one, told to be a third, knows nothing.
    path = tmp_path / "third.tflite"
    config = ExportConfig(batch_size=8, max_local_steps=0, family="centers", version=3)
    export_tflite(
        MODEL, device.weights, path, config, card={"inner_learning_rate": 1e-6}
    )
    mine = pfa.PersonalModel(tmp_path / "user", versions[1])
    mine.add(*rows_of(2))
    mine.adapt()
    mine = pfa.PersonalModel(tmp_path / "user", path)
    report = mine.adapt()
    assert (report.adopted, mine.version) == (None, 2)
    assert report.loss_after <= report.loss_before
    # A model of its own again, by a rate that suits.
    assert mine.adapt(learning_rate=RATE).loss_after <= report.loss_after
    assert len(list((tmp_path / "user").glob("model-*"))) == 2 - (mine.version == 3)


def test_who_has_taught_nothing_has_the_new_version_at_once(versions, tmp_path):
    pfa.PersonalModel(tmp_path, versions[0])
    mine = pfa.PersonalModel(tmp_path, versions[1])
    assert mine.version == 2
    assert len(list(tmp_path.glob("model-*"))) == 1
    with pytest.raises(errors.ConfigError, match="is version 1, and 2 is in use"):
        pfa.PersonalModel(tmp_path, versions[0])
    with pytest.raises(errors.DataError, match="0 examples to learn from"):
        mine.adapt()


def test_the_same_model_in_another_file_keeps_what_was_taught(versions, tmp_path):
    mine = pfa.PersonalModel(tmp_path / "user", versions[0])
    mine.add(*rows_of(1))
    mine.adapt()
    path = tmp_path / "again.tflite"
    config = ExportConfig(batch_size=6, max_local_steps=0, family="centers")
    export_tflite(
        MODEL, MODEL.init(1), path, config, card={"inner_learning_rate": RATE}
    )
    again = pfa.PersonalModel(tmp_path / "user", path)
    assert again.device.batch_size == 6
    assert all(
        np.array_equal(a, b)
        for a, b in zip(mine.device.weights, again.device.weights, strict=True)
    )


def test_another_family_is_refused(versions, tmp_path):
    mine = pfa.PersonalModel(tmp_path / "user", versions[0])
    path = tmp_path / "other.tflite"
    export_tflite(
        MODEL,
        MODEL.init(1),
        path,
        ExportConfig(batch_size=4, max_local_steps=0, family="others", version=5),
    )
    with pytest.raises(errors.ConfigError, match="family is 'others', not 'centers'"):
        pfa.PersonalModel(tmp_path / "user", path)
    assert mine.version == pfa.PersonalModel(tmp_path / "user").version == 1
    with pytest.raises(errors.ModelError, match="has no model yet"):
        pfa.PersonalModel(tmp_path / "nobody")


def test_a_model_that_cannot_be_guarded_does_not_come_into_use(versions, tmp_path):
    path = tmp_path / "plain.tflite"
    config = ExportConfig(
        batch_size=4,
        max_local_steps=0,
        max_guarded_steps=0,
        family="centers",
        version=9,
    )
    export_tflite(MODEL, MODEL.init(3), path, config)
    with pytest.raises(errors.ModelError, match="no signature 'adapt_guarded'"):
        pfa.PersonalModel(tmp_path / "user", path)
    mine = pfa.PersonalModel(tmp_path / "user", versions[0])
    with pytest.raises(errors.ModelError, match="no signature 'adapt_guarded'"):
        pfa.PersonalModel(tmp_path / "user", path)
    assert pfa.PersonalModel(tmp_path / "user").version == mine.version == 1
    assert len(list((tmp_path / "user").glob("model-*"))) == 1


def test_forgetting_leaves_the_initial_model(versions, tmp_path):
    mine = pfa.PersonalModel(tmp_path, versions[0])
    mine.add(*rows_of(1))
    mine.adapt()
    mine.forget()
    again = pfa.PersonalModel(tmp_path)
    fresh = OnDeviceModel(versions[0])
    for found in (mine, again):
        assert len(found.examples) == 0
        assert all(
            np.array_equal(a, b)
            for a, b in zip(fresh.weights, found.device.weights, strict=True)
        )
    assert not list(tmp_path.glob("weights*"))


def test_a_crash_at_any_write_of_a_migration_loses_nothing(
    versions, tmp_path, monkeypatch
):
    x, y = rows_of(6)
    answers = {}
    wrote = personal.atomic_write
    for fails_at in range(1, 8):
        directory = tmp_path / str(fails_at)
        mine = pfa.PersonalModel(directory, versions[0])
        mine.add(x, y)
        mine.adapt()
        old = mine.infer(x)
        count = 0

        def write(*arguments, fails_at=fails_at, **named):
            nonlocal count
            count += 1
            if count == fails_at:
                raise KeyboardInterrupt
            return wrote(*arguments, **named)

        monkeypatch.setattr(personal, "atomic_write", write)
        try:
            pfa.PersonalModel(directory, versions[1]).adapt()
            is_over = True
        except KeyboardInterrupt:
            is_over = False
        monkeypatch.setattr(personal, "atomic_write", wrote)
        found = pfa.PersonalModel(directory, versions[1])
        assert len(found.examples) == 18
        new = found.infer(x)
        answers[fails_at] = found.version
        if found.version == 1:
            assert np.array_equal(new, old)
        assert found.adapt().loss_after <= loss_of(
            found.device, *found.examples.to_check()
        ) * (1 + 1e-5)
        assert found.version == 2
        if is_over:
            break
    assert is_over
    assert set(answers.values()) == {1, 2}


_MIGRATES = """
import sys
import tff_perfedavg as pfa
mine = pfa.PersonalModel(sys.argv[1], sys.argv[2])
print("begins", flush=True)
while True:
    mine.adapt()
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1])
def test_a_killed_migration_leaves_one_model_whole(versions, tmp_path, delay):
    x, y = rows_of(8)
    mine = pfa.PersonalModel(tmp_path, versions[0])
    mine.add(x, y)
    mine.adapt()
    check = mine.examples.to_check()
    before = loss_of(mine.device, *check)
    process = subprocess.Popen(
        [sys.executable, "-c", _MIGRATES, str(tmp_path), str(versions[1])],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(pfa.__file__).parents[1])},
    )
    assert process.stdout.readline() == b"begins\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = pfa.PersonalModel(tmp_path)
    assert len(found.examples) == 18
    assert loss_of(found.device, *check) <= before * (1 + 1e-6)


# ------------------------------------------------------------------- whatever is given

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.none(),
    st.text(max_size=2),
    st.complex_numbers(max_magnitude=2),
)
SHAPES = st.one_of(
    st.sampled_from([(4,), (1, 4), (3, 4), (9, 4), (0, 4), (2, 3), (), (2, 4, 1)]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
)


@st.composite
def arrays(draw):
    if draw(st.integers(0, 9)) == 0:
        return draw(st.lists(st.lists(NUMBERS, max_size=5), max_size=3))
    shape = draw(SHAPES)
    size = int(np.prod(shape))
    if draw(st.booleans()):
        kind = draw(
            st.sampled_from(["f4", "f8", "i4", "i8", "u1", "?", "O", "U2", "c8"])
        )
        values = draw(st.lists(st.integers(-2, 5), min_size=size, max_size=size))
        return np.array(values).astype(kind).reshape(shape)
    values = draw(st.lists(NUMBERS, min_size=size, max_size=size))
    nested = np.empty(size, object)
    nested[:] = values
    return nested.reshape(shape).tolist()


CALLS = {
    "infer": lambda d, x, y, n: d.infer(x),
    "adapt": lambda d, x, y, n: d.adapt(x, y, n, 2),
    "num_steps": lambda d, x, y, n: d.adapt(x, y, 0.1, n),
    "guarded": lambda d, x, y, n: d.adapt_guarded(x, y, learning_rate=n),
    "check": lambda d, x, y, n: d.adapt_guarded(x, y, check=(y, x), num_steps=n),
    "loss": lambda d, x, y, n: d.check_loss(x, y),
    "set_weights": lambda d, x, y, n: d.set_weights([x, y]),
    "one weight": lambda d, x, y, n: d.set_weights([*d.weights[:3], x]),
    "call": lambda d, x, y, n: d.call("adapt", x=x, y=y, learning_rate=n),
}


@settings(max_examples=1000, deadline=None)
@given(
    name=st.sampled_from(sorted(CALLS)),
    x=arrays(),
    y=arrays(),
    number=NUMBERS,
)
def test_whatever_is_given_is_done_or_refused(shared_device, name, x, y, number):
    with contextlib.suppress(errors.PerFedAvgError):
        CALLS[name](shared_device, x, y, number)
    assert all(np.isfinite(w).all() for w in shared_device.weights)
    assert np.isfinite(shared_device.infer(np.eye(4, dtype=np.float32))).all()


@pytest.fixture(scope="module")
def shared_device(versions):
    return OnDeviceModel(versions[0])


def test_users_are_played_with_and_without_a_guard(device, tmp_path):
    users = [User(Rows(*rows_of(u)), Rows(*rows_of(u, 4))) for u in range(4)]
    description = Description("centers", num_classes=3)
    store = UserStore.write(tmp_path / "store", users, description)
    played = pd.DataFrame(
        [guard.play_at(device, store, user, 1e4, 5) for user in range(4)]
    )
    # So large a rate leads nowhere: guarded, nobody is worse off.
    assert (played.guarded >= played.before).all()
    assert (played.checked == 6).all()
    found = guard.summary(played)
    assert found["users worse guarded"] == 0
    worse = played.before - played.unguarded
    assert found["users worse unguarded"] == (worse > 0).sum()
    assert found["accuracy unguarded, %"] == pytest.approx(
        100 * played.unguarded.mean(), abs=0.06
    )

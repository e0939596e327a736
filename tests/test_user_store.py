"""The store on disk: what is written is read, and nothing half-written opens."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_perfedavg import errors
from tff_perfedavg.data import heterogeneity
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore

CLASSES = Description("toy", num_classes=3)


def user(rng, num_adaptation, num_evaluation, dtype=np.uint8, **more):
    def rows(count):
        x = rng.integers(0, 200, [count, 4, 2]).astype(dtype)
        return Rows(x, rng.integers(0, 3, [count]).astype(np.int32))

    return User(rows(num_adaptation), rows(num_evaluation), **more)


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    users = [user(rng, 5, 2), user(rng, 1, 0, is_new=True), user(rng, 3, 4)]
    return UserStore.write(tmp_path / "store", users, CLASSES)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()).filter(
            lambda s: s[0] + s[1]
        ),
        min_size=1,
        max_size=12,
    ),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32]),
    named=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, sizes, dtype, named):
    rng = np.random.default_rng(0)
    users = [
        user(rng, a, e, dtype, is_new=new, name=f"user ü{i}" if named else None)
        for i, (a, e, new) in enumerate(sizes)
    ]
    path = tmp_path_factory.mktemp("stores") / "store"
    description = Description(
        "toy", 3, scale=[0.5, 2.0], class_names=["a", "b", "c"], provenance="a test"
    )
    UserStore.write(path, iter(users), description)
    store = UserStore.open(path)
    store.verify()
    assert store.description == description
    assert store.num_users == len(users)
    assert store.num_rows == sum(a + e for a, e, _ in sizes)
    assert store.input_shape == (4, 2)
    assert store.feature_dtype == dtype
    assert [*store.new_users] == [i for i, u in enumerate(users) if u.is_new]
    assert [*store.training_users] == [i for i, u in enumerate(users) if not u.is_new]
    for number, written in enumerate(users):
        for read, rows in (
            (store.adaptation(number), written.adaptation),
            (store.evaluation(number), written.evaluation),
        ):
            assert np.array_equal(read.x, rows.x)
            assert np.array_equal(read.y, rows.y)
        assert store.user_name(number) == (f"user ü{number}" if named else str(number))


def test_equal_content_has_an_equal_fingerprint(store, tmp_path):
    rng = np.random.default_rng(0)
    users = [user(rng, 5, 2), user(rng, 1, 0, is_new=True), user(rng, 3, 4)]
    twin = UserStore.write(tmp_path / "twin", users, CLASSES)
    assert twin.fingerprint == store.fingerprint
    other = UserStore.write(tmp_path / "other", users[:2], CLASSES)
    assert other.fingerprint != store.fingerprint


@pytest.mark.parametrize("name", ["features.bin", "labels.bin", "users.bin"])
def test_truncated_and_missing_files_are_refused_by_name(store, name):
    file = store.path / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(errors.DataError, match=f"{name} has .* bytes where"):
        UserStore.open(store.path)
    file.unlink()
    with pytest.raises(errors.DataError, match=f"{name} is missing"):
        UserStore.open(store.path)


@pytest.mark.parametrize("name", ["features.bin", "labels.bin"])
def test_a_flipped_bit_is_found_by_name(store, name):
    file = store.path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(errors.DataError, match=f"{name} is not what was written"):
        UserStore.open(store.path).verify()


def test_another_version_and_an_unreadable_header_are_refused(store):
    header = store.path / "store.json"
    content = json.loads(header.read_text())
    header.write_text(json.dumps({**content, "format_version": 7}))
    with pytest.raises(errors.DataError, match=r"format version 7.*reads 1"):
        UserStore.open(store.path)
    header.write_text("{")
    with pytest.raises(errors.DataError, match=r"store\.json is unreadable"):
        UserStore.open(store.path)
    header.write_text("{}")
    with pytest.raises(errors.DataError, match=r"store\.json is unreadable"):
        UserStore.open(store.path)


def test_a_place_without_a_store_is_refused(tmp_path):
    told = r"No user store at .*UserStore\.write"
    with pytest.raises(errors.DataError, match=told) as caught:
        UserStore.open(tmp_path)
    assert caught.value.remedies == ("UserStore.write",)


def test_a_place_taken_is_refused(store):
    with pytest.raises(errors.DataError, match="exists already; remove it"):
        UserStore.write(store.path, [], CLASSES)
    assert UserStore.open(store.path).num_users == 3


def rows(x, y):
    return Rows(np.asarray(x, np.float32), np.asarray(y, np.int32))


GOOD = User(rows([[1.0, 2.0]], [0]), rows([[1.0, 2.0]], [0]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (User(rows([[np.nan, 0]], [0]), GOOD.evaluation), "user 1 has features that"),
        (
            User(rows([[0, 0]], [3]), GOOD.evaluation),
            "user 1 has a label outside 0 to 2",
        ),
        (User(rows([[0, 0]], [-1]), GOOD.evaluation), "user 1 has a label outside"),
        (User(GOOD.adaptation, rows([[0, 0]], [9])), "user 1 has a label outside"),
        (User(rows([[0, 0]], []), GOOD.evaluation), "user 1 has features of shape"),
        (User(rows([[0]], [0]), GOOD.evaluation), "user 1 has features .*user 0 has"),
        (
            User(Rows(np.zeros([1, 2]), np.zeros([1], np.int32)), GOOD.evaluation),
            "user 1 has features .*float64.*user 0 has .*float32",
        ),
        (
            User(rows(np.zeros([0, 2]), []), rows(np.zeros([0, 2]), [])),
            "user 1 has no rows",
        ),
        (GOOD._replace(name="ann"), "user 1 .ann.: either all users have names"),
    ],
)
def test_a_bad_user_is_refused_by_number_and_nothing_is_left(tmp_path, bad, message):
    with pytest.raises(errors.DataError, match=message):
        UserStore.write(tmp_path / "store", [GOOD, bad], CLASSES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            GOOD._replace(adaptation=Rows([[1.0, 2.0], [1.0]], [0, 0])),
            "user 0 has rows that are no arrays .*every row of the same shape",
        ),
        (GOOD._replace(evaluation=None), "user 0 has rows that are no arrays"),
        (
            GOOD._replace(adaptation=Rows(None, None)),
            r"user 0 has features of shape \(",
        ),
        (GOOD._replace(name=3), "user 0 .3. has a name that is no text"),
        (GOOD._replace(name=b"ann"), "has a name that is no text"),
    ],
)
def test_a_first_user_without_rows_or_a_name_of_text_is_refused(tmp_path, bad, message):
    with pytest.raises(errors.DataError, match=message):
        UserStore.write(tmp_path / "store", [bad], CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_directory_is_needed_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file/store", "file/stores/store"):
        with pytest.raises(errors.DataError, match="a file is where a directory is"):
            UserStore.write(tmp_path / place, [GOOD], CLASSES)


def test_a_name_missing_later_is_refused(tmp_path):
    users = [GOOD._replace(name="ann"), GOOD]
    with pytest.raises(errors.DataError, match="user 1: either all users have names"):
        UserStore.write(tmp_path / "store", users, CLASSES)


def test_no_users_are_refused(tmp_path):
    with pytest.raises(errors.DataError, match="there are no users"):
        UserStore.write(tmp_path / "store", [], CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_user_that_is_not_there_is_refused(store):
    for number in (-1, 3):
        with pytest.raises(errors.DataError, match=f"users 0 to 2, not {number}"):
            store.adaptation(number)


WRITE_FOREVER = """
import pathlib, sys
import numpy as np
from tff_perfedavg.data.user_store import Description, Rows, User, UserStore

def users():
    rows = Rows(np.zeros([100, 1000], np.uint8), np.zeros([100], np.int32))
    number = 0
    while True:
        yield User(rows, rows)
        number += 1
        if number == 20:
            print("under way", flush=True)

try:
    UserStore.write(sys.argv[1], users(), Description("endless", 3))
except Exception as e:
    print(type(e).__name__, e)
"""


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path):
    # The kernel refuses to let a file grow further, as it does on a full disk.
    def limit_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))

    answer = subprocess.run(
        [sys.executable, "-c", WRITE_FOREVER, tmp_path / "store"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=limit_files,
        timeout=60,
    )
    assert "DataError" in answer.stdout
    assert "store could not be written (File too large); nothing of it" in answer.stdout
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_no_store_that_opens(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, tmp_path / "store"],
        stdout=subprocess.PIPE,
    )
    assert writer.stdout.readline() == b"under way\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    left = list(tmp_path.iterdir())
    assert left
    for place in [tmp_path / "store", *left]:
        with pytest.raises(errors.DataError, match="No user store at"):
            UserStore.open(place)


def test_writing_keeps_memory_flat(tmp_path):
    # 400 MB of rows through a process that may have 300 MB more than it starts with.
    program = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from tff_perfedavg.data.user_store import *\n"
        "def users():\n"
        "    for _ in range(400):\n"
        "        x = np.zeros([1000, 1000], np.uint8)\n"
        "        yield User(Rows(x, np.zeros([1000], np.int32)),\n"
        "                   Rows(x[:0], np.zeros([0], np.int32)))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "UserStore.write(sys.argv[1], users(), Description('flat', 3))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "store"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(answer.stdout) < 50_000


def test_heterogeneity_has_the_values_worked_out_by_hand(tmp_path):
    def holding(labels):
        y = np.array(labels, np.int32)
        x = np.zeros([len(y), 1], np.uint8)
        return User(Rows(x[:1], y[:1]), Rows(x[1:], y[1:]))

    users = [holding([0, 0, 0, 0]), holding([1, 1]), holding([0, 1])]
    store = UserStore.write(tmp_path / "store", users, Description("toy", 3))
    found = heterogeneity.summarize(store)
    assert found.histograms.tolist() == [[4, 0, 0], [0, 2, 0], [1, 1, 0]]
    assert found.sizes.tolist() == [4, 2, 2]
    # The population holds 5/8 and 3/8.
    assert np.isclose(found.total_variation, (3 / 8 + 5 / 8 + 1 / 8) / 3)
    assert "rows per user         2 to 4, median 2, mean 2.7" in str(found)


def test_users_of_equal_label_shares_are_not_called_alike(tmp_path):
    # The same shares of two labels that mean the opposite to the second user.
    x = np.arange(4, dtype=np.float32)[:, np.newaxis]
    y = np.array([0, 1, 0, 1], np.int32)
    users = [User(Rows(x, labels), Rows(x, labels)) for labels in (y, 1 - y)]
    store = UserStore.write(tmp_path / "store", users, Description("toy", 2))
    said = str(heterogeneity.summarize(store)).splitlines()[-1]
    assert said == (
        "mean total variation  0.000 of label shares "
        "(0: the same shares, 1: no label in common)"
    )


def test_importing_the_store_loads_no_framework():
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, tff_perfedavg.data.user_store, tff_perfedavg.data.division\n"
            "print({'tensorflow', 'sklearn', 'pandas'} & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    assert answer.stdout == "set()\n"


def test_every_altered_byte_of_the_table_of_users_is_found(store):
    """Half of them as no table of users, the rest by their hash."""
    file = store.path / "users.bin"
    whole = file.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        with pytest.raises(errors.DataError, match=r"users\.bin is"):
            UserStore.open(store.path).verify()
    file.write_bytes(whole)
    UserStore.open(store.path).verify()


# First row, first evaluation row, end, is_new: of users of 5 + 2, 1 and 3 + 4 rows.
@pytest.mark.parametrize(
    ("user", "column", "value"),
    [
        (0, 0, 1),
        (0, 1, 8),
        (0, 1, -1),
        (0, 2, 8),
        (0, 3, 2),
        (1, 0, 6),
        (2, 2, 500_000_000),
        (2, 2, 14),
        (1, 2, 7),
    ],
)
def test_rows_that_are_anothers_or_not_there_are_refused_at_opening(
    store, user, column, value
):
    file = store.path / "users.bin"
    table = np.fromfile(file, np.int64).reshape(-1, 4)
    table[user, column] = value
    table.tofile(file)
    with pytest.raises(errors.DataError, match=r"users\.bin is damaged: "):
        UserStore.open(store.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("num_rows"), "'num_rows' is 'missing'"),
        (lambda h: h.update(num_users="3"), "'num_users' is '3'"),
        (lambda h: h.update(num_rows=14), "contradicts itself: features.bin"),
        (lambda h: h.update(num_users=2), "contradicts itself: users.bin"),
        (lambda h: h["labels"].update(dtype="int64"), "contradicts itself: labels.bin"),
        (lambda h: h["labels"].update(dtype="no"), "'labels' is .*without a shape or"),
        (lambda h: h["features"].pop("shape"), "'features' is .*without a shape or"),
        (lambda h: h["files"].pop("labels.bin"), "labels.bin is said to have None"),
        (lambda h: h["description"].update(colour="red"), "'description': .*colour"),
        (lambda h: h["description"].update(scale="x"), "'description': .*scale is 'x'"),
        (lambda h: h["description"].update(scale=[1, 2, 3]), "scale has 3 numbers"),
        (lambda h: h.update(files=None), "'files' is None; prepare"),
        (lambda h: h.update(files=["labels.bin"]), "'files' is .*; prepare"),
        (lambda h: h.update(files=3), "'files' is 3; prepare"),
        (lambda h: h["files"].update({"labels.bin": None}), "labels.bin is None, with"),
        (lambda h: h["files"]["labels.bin"].pop("bytes"), "labels.bin is .* bytes or"),
        (lambda h: h["files"]["labels.bin"].pop("sha256"), "labels.bin is .*or sha256"),
        (lambda h: h["features"].update(shape=[4.0, 2]), "'features' is .* a shape or"),
        (lambda h: h["features"].update(shape=[-4, -2]), "'features' is .* a shape or"),
        (lambda h: h["features"].update(shape=None), "'features' is .* a shape or"),
        (lambda h: h["features"].update(dtype=None), "'features' is .* dtype of num"),
        (lambda h: h["features"].update(dtype="S1"), "'features' is .* dtype of num"),
        (lambda h: h["features"].update(dtype="f4,("), "'features' is .* dtype of num"),
    ],
)
def test_a_header_that_lacks_or_contradicts_is_refused_by_its_key(
    store, change, message
):
    file = store.path / "store.json"
    header = json.loads(file.read_text())
    change(header)
    file.write_text(json.dumps(header))
    with pytest.raises(errors.DataError, match=message):
        UserStore.open(store.path)


def test_names_that_the_header_does_not_know_of_are_no_store_without_names(tmp_path):
    users = [GOOD._replace(name="ann"), GOOD._replace(name="bob")]
    store = UserStore.write(tmp_path / "store", users, CLASSES)
    file = store.path / "store.json"
    header = json.loads(file.read_text())
    del header["files"]["ids.npy"]
    file.write_text(json.dumps(header))
    with pytest.raises(errors.DataError, match=r"ids\.npy is there, but not among"):
        UserStore.open(store.path)


def test_a_store_that_changes_while_it_is_open_is_noticed(store):
    store.check_unchanged()
    file = store.path / "labels.bin"
    file.write_bytes(file.read_bytes())
    with pytest.raises(errors.DataError, match="has changed while it was in use"):
        store.check_unchanged()


def test_hashes_are_checked_again_when_a_file_has_changed(store):
    store.verify()
    file = store.path / "features.bin"
    content = bytearray(file.read_bytes())
    content[3] ^= 4
    file.write_bytes(content)
    with pytest.raises(
        errors.DataError, match=r"features\.bin is not what was written"
    ):
        UserStore.open(store.path).verify()


@pytest.mark.parametrize("scale", [np.nan, [1.0, np.inf], "much", [[1.0]]])
def test_a_scale_that_is_no_finite_number_is_refused(scale):
    with pytest.raises(errors.DataError, match=r"scale is .*finite number"):
        Description("toy", 3, scale=scale)


def test_a_scale_of_another_length_than_the_features_is_refused(tmp_path):
    description = Description("toy", 3, scale=[1.0, 2.0, 3.0])
    users = [user(np.random.default_rng(0), 2, 1)]
    with pytest.raises(errors.DataError, match=r"3 numbers, .*\[4, 2\] has 2 entries"):
        UserStore.write(tmp_path / "store", users, description)


def test_a_label_that_is_no_whole_number_is_refused(tmp_path):
    x = np.zeros([2, 1], np.float32)
    good, bad = (np.array(y, np.float32) for y in ([0, 2], [0, 0.7]))

    def write(y, classes):
        users = [User(Rows(x, y), Rows(x[:0], y[:0]))]
        path = tmp_path / f"{y[1]}-{classes}"
        return UserStore.write(path, users, Description("toy", classes))

    with pytest.raises(
        errors.DataError, match=r"user 0 has the label 0\.7, but classes"
    ):
        write(bad, 3)
    assert write(good, 3).num_rows == write(bad, None).num_rows == 2

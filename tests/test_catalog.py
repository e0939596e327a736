"""Data sets by name: embedded, generated, from files, and what is said of others."""

import dataclasses
import gzip
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from tests.needs import needs_data
from tff_perfedavg import errors
from tff_perfedavg.data import catalog, division, idx
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.assemble.population import (
    build_population,
    population_path,
)
from tff_perfedavg.experiments.assemble.prepare import prepare, prepare_once
from tff_perfedavg.experiments.report.store_summary import summary
from tff_perfedavg.experiments.settings.experiment import Experiment

DATA_DIR = os.environ.get(catalog.DATA_DIR_VARIABLE)


def counts(rows):
    return np.bincount(rows.y, minlength=10)


def test_digits_gives_no_row_twice_and_keeps_the_rule_in_both_splits(tmp_path):
    store = prepare(DataConfig.of("digits"), tmp_path / "digits")
    assert store.num_users == 26
    seen = set()
    for user in range(26):
        for rows, a in ((store.adaptation(user), 8), (store.evaluation(user), 4)):
            seen |= {x.tobytes() for x in rows.x}
            if user < 13:
                assert counts(rows).tolist() == [a] * 5 + [0] * 5
            else:
                assert sorted(counts(rows)) == [0] * 8 + [a // 2, 2 * a]
    # No two images of the data set are equal, so rows are told apart by content.
    assert len(seen) == store.num_rows == 13 * 12 * 5 + 13 * 30
    # Half of the new users are of either kind.
    assert store.new_users.tolist() == [10, 11, 12, 23, 24, 25]
    assert store.feature_dtype == np.uint8
    assert store.features.max() * store.description.scale == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_new_users": 5}, "num_new_users is 5"),
        ({"num_users": 25}, "num_users is 25"),
        ({"num_users": 10**30}, r"num_users is 10{30}; it must be at most 2147483647"),
        ({"a": 7}, "a is 7"),
        ({"a": 0}, "a is 0, which leaves users no rows to adapt on; .* at least 2"),
        ({"evaluation_a": 0}, "evaluation_a is 0, which .* no rows to be judged on"),
        ({"num_new_users": 26}, "num_new_users is 26 of 26"),
        ({"partition": "natural"}, "does not say whose"),
        ({"partition": "papers"}, "partition is 'papers'; known: natural, paper"),
        ({"evaluation_fraction": 1.0}, "evaluation_fraction is 1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"partition": "iid", "fold": "3"}, "fold is '3'; write which of how many"),
        ({"partition": "iid", "fold": "0/3"}, "fold is 0/3; it must be from 1/N"),
        ({"partition": "iid", "fold": "4/3"}, "fold is 4/3; it must be from 1/N"),
        ({"partition": "iid", "fold": "1/1"}, "fold is 1/1; .* of at least 2"),
        (
            {"partition": "iid", "fold": "1/2", "num_new_users": 2},
            "fold is 1/2 and num_new_users 2; leave out one",
        ),
        ({"fold": "1/2"}, "users of digits by paper are new by another rule"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_loaded(fields, message):
    with pytest.raises(errors.ConfigError, match=message):
        DataConfig.of("digits", **fields)


def test_over_all_folds_each_user_is_new_once_and_keeps_its_rows(tmp_path):
    stores = [
        prepare(
            DataConfig.of("digits", partition="iid", num_users=10, fold=f"{k}/4"),
            tmp_path / str(k),
        )
        for k in range(1, 5)
    ]
    new = np.concatenate([store.new_users for store in stores])
    assert sorted(new) == [*range(10)]
    assert [len(store.new_users) for store in stores] == [3, 3, 2, 2]
    for store in stores[1:]:
        for user in range(10):
            first, same = stores[0].evaluation(user), store.evaluation(user)
            assert np.array_equal(first.x, same.x)


def test_more_folds_than_users_are_refused(tmp_path):
    config = DataConfig.of("digits", partition="iid", num_users=10, fold="1/11")
    with pytest.raises(errors.DataError, match="fold is 1/11, but there are 10 users"):
        prepare(config, tmp_path / "store")


def test_data_sets_that_come_user_by_user_take_no_partition():
    with pytest.raises(errors.ConfigError, match="sinusoid comes user by user"):
        DataConfig.of("sinusoid", partition="iid")
    with pytest.raises(errors.ConfigError, match="dataset is 'minst'; known: digits"):
        DataConfig.of("minst")


def test_too_many_rows_are_refused_with_the_largest_number_feasible(tmp_path):
    config = DataConfig.of("digits", a=40)
    with pytest.raises(errors.DataError, match="largest feasible a is 12"):
        prepare(config, tmp_path / "digits")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"partition": "dirichlet", "num_users": 15, "rows_per_user": 30},
        {"partition": "k_classes", "num_users": 15, "classes_per_user": 3},
        {"partition": "iid", "num_users": 30},
        {"partition": "quantity_skew", "num_users": 30},
        {"partition": "paper_diff_hetero"},
    ],
)
def test_every_partition_makes_a_store_of_disjoint_splits(tmp_path, fields):
    config = DataConfig.of("digits", **fields)
    store = prepare(config, tmp_path / "one")
    assert prepare(config, tmp_path / "two").fingerprint == store.fingerprint
    assert len(store.new_users) == 6
    assert len({x.tobytes() for x in store.features}) == store.num_rows
    for user in range(store.num_users):
        adaptation, evaluation = store.adaptation(user), store.evaluation(user)
        assert len(adaptation.y)
        if len(adaptation.y) > 1:
            assert len(evaluation.y)
    assert "mean total variation" in summary(store)


def test_a_store_is_prepared_once(tmp_path):
    config = DataConfig.of("digits")
    first = prepare_once(config, tmp_path / "digits")
    inode = (first.path / "users.bin").stat().st_ino
    again = prepare_once(config, tmp_path / "digits")
    assert (again.path / "users.bin").stat().st_ino == inode
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(
        errors.DataError, match=r"seed=0, not by .*seed=1\. Choose"
    ) as e:
        prepare_once(other, tmp_path / "digits")
    # It may be what another process trains on.
    assert "remove" not in str(e.value)


PREPARE = """
import pathlib, sys
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.experiments.assemble.population import (
    build_population,
    population_path,
)
from tff_perfedavg.experiments.assemble.prepare import prepare_once
from tff_perfedavg.experiments.settings.experiment import Experiment

print("ready", flush=True)
sys.stdin.readline()
config = DataConfig.of("sinusoid", num_users=3000)
print(prepare_once(config, pathlib.Path(sys.argv[1])).fingerprint)
"""


WITHOUT_LOCKS = """
import fcntl

def refuse(descriptor, operation):
    raise OSError(37, "No locks available")

fcntl.flock = refuse
"""


@pytest.mark.parametrize("before", ["", WITHOUT_LOCKS])
def test_processes_that_need_one_store_at_once_prepare_it_once(tmp_path, before):
    path = tmp_path / "stores" / "sinusoid"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", before + PREPARE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, told
    store = UserStore.open(path)
    assert {out.strip() for out, _ in told} == {store.fingerprint}
    waited = [f"Waiting for another process that prepares {path}" in e for _, e in told]
    assert any(waited) or before
    assert [p.name for p in path.parent.iterdir()] == ["sinusoid"]


def test_synthetic_users_differ_as_told(tmp_path):
    def centres(beta):
        config = DataConfig.of("synthetic", synthetic_beta=beta, num_users=60)
        _, users = division.generate(config)
        return np.array([user.adaptation.x.mean() for user in users])

    # A user's features are centred on a draw of variance beta (and what the mean of
    # 60 draws of variance 1 adds).
    assert np.isclose(centres(0.0).std(), 1 / np.sqrt(60), rtol=0.4)
    assert np.isclose(centres(4.0).std(), 2, rtol=0.4)
    store = prepare(DataConfig.of("synthetic"), tmp_path / "synthetic")
    assert store.input_shape == (60,)
    sizes = store.users[:, 2] - store.users[:, 0]
    assert sizes.min() >= 50


def test_sinusoid_users_are_sinusoids(tmp_path):
    store = prepare(
        DataConfig.of("sinusoid", num_users=20, num_new_users=4), tmp_path / "s"
    )
    assert store.description.num_classes is None
    for user in range(20):
        x, y = store.adaptation(user)
        # y = p sin(x) + q cos(x) for some p and q.
        basis = np.concatenate([np.sin(x), np.cos(x)], 1).astype(np.float64)
        residual = np.linalg.lstsq(basis, y.astype(np.float64), rcond=None)[1]
        assert residual < 1e-8


def test_a_data_set_found_nowhere_says_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(catalog.DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(
        errors.DataError,
        match=r"no uci_har_inertial_i16\.npz or UCI HAR Dataset/ .*is not set.*unpack",
    ):
        catalog.load("uci_har")
    with pytest.raises(errors.DataError, match=f"tinyshakespeare.* in {tmp_path}"):
        catalog.load("shakespeare", tmp_path)
    with pytest.raises(errors.DataError, match="There is no data set 'x'; known: dig"):
        catalog.load("x")
    with pytest.raises(errors.DataError, match="nowhere is no directory"):
        catalog.load("digits", tmp_path / "nowhere")


def test_a_failed_download_is_told_with_its_reason(tmp_path, monkeypatch):
    import tensorflow as tf

    def fail():
        raise OSError("no route to host")

    monkeypatch.setattr(tf.keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(
        errors.DataError,
        match=r"no fashion_mnist\.npz or train-images-idx3-ubyte\[\.gz\] in .*no route "
        r"to host.*load_data\(\) where there.*in data_dir or.*arrays x_train, y_train, "
        r"x_te.*t10k-labels-idx1-ubyte, plain or ending in \.gz, there or in fashion_m"
        r"n",
    ) as caught:
        catalog.load("fashion_mnist", tmp_path)
    assert caught.value.remedies == ("data_dir",)


def test_a_damaged_file_is_told_by_name(tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(errors.DataError, match=r"cifar10\.npz is damaged"):
        catalog.load("cifar10", tmp_path)


def images(num_rows, labels=None):
    """Arrays such as MNIST's, with so many training and half as many test rows."""
    rng = np.random.default_rng(0)
    sizes = {"train": num_rows, "test": num_rows // 2}
    arrays = {}
    for part, size in sizes.items():
        arrays[f"x_{part}"] = rng.integers(0, 256, [size, 28, 28], np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, [size], np.uint8)
    if labels is not None:
        arrays["y_train"][: len(labels)] = labels
    return arrays


def write_idx(folder, arrays, ending):
    """Writes the four files as they are given out, by their format's description."""
    folder.mkdir(exist_ok=True)
    for array, name in idx.MNIST_FILES.items():
        values = arrays[array]
        content = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        content += values.tobytes()
        path = folder / f"{name}{ending}"
        path.write_bytes(gzip.compress(content) if ending else content)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_idx_files_give_what_an_npz_of_the_same_arrays_gives(
    tmp_path, name, ending, in_folder
):
    arrays = images(20)
    write_idx(tmp_path / name if in_folder else tmp_path, arrays, ending)
    from_idx = catalog.load(name, tmp_path)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    from_npz = catalog.load(name, tmp_path)
    for found, expected in ((from_idx, from_npz), (from_idx.test, from_npz.test)):
        assert np.array_equal(found.x, expected.x)
        assert np.array_equal(found.y, expected.y)
        assert (found.x.dtype, found.y.dtype) == (np.uint8, np.int32)
    assert np.array_equal(from_idx.x, arrays["x_train"])
    assert from_idx.class_names == from_npz.class_names


def test_a_data_sets_own_folder_goes_before_files_beside_it(tmp_path):
    write_idx(tmp_path, images(20), ".gz")
    write_idx(tmp_path / "fashion_mnist", images(30), "")
    assert len(catalog.load("mnist", tmp_path).y) == 20
    assert len(catalog.load("fashion_mnist", tmp_path).y) == 30


def test_an_experiment_is_prepared_from_where_its_data_lie(tmp_path):
    write_idx(tmp_path / "data", images(40), ".gz")
    experiment = Experiment(dataset="mnist", partition="iid", num_users=4)
    store = build_population(experiment, tmp_path / "runs", tmp_path / "data")
    assert store.num_users == 4
    assert store.path == population_path(experiment, tmp_path / "runs")
    # It is there; where the data were matters no more.
    again = build_population(experiment, tmp_path / "runs")
    assert again.fingerprint == store.fingerprint


def test_fashion_mnists_files_are_not_taken_for_mnists(tmp_path):
    write_idx(tmp_path, images(20, labels=[9, 0, 0, 3, 0, 2, 7, 2, 5, 5]), ".gz")
    assert len(catalog.load("fashion_mnist", tmp_path).y) == 20
    with pytest.raises(
        errors.DataError, match=rf"are fashion_mnist's, not mnist's; .*{tmp_path}/mnist"
    ):
        catalog.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), r"mnist is incomplete in .*: t10k-labels-idx1-ubyte \("),
        (lambda p: p.write_bytes(b"no gzip"), r"t10k-labels.*\.gz is damaged"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-12]),
            r"t10k-labels.*\.gz is damaged",
        ),
        (
            lambda p: p.write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\0")),
            "is no IDX file of unsigned bytes",
        ),
        (
            lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09123")),
            r"it has 3 bytes where shape \[9\] needs 9",
        ),
        (
            lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x03123")),
            r"x_test is uint8 \[10, 28, 28\] and y_test uint8 \[3\]",
        ),
    ],
)
def test_idx_files_that_are_damaged_are_told_by_name(tmp_path, damage, message):
    write_idx(tmp_path, images(20), ".gz")
    damage(tmp_path / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(errors.DataError, match=message):
        catalog.load("mnist", tmp_path)


def test_an_npz_without_the_arrays_says_which_it_needs(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros([3]), images=np.zeros([3]))
    with pytest.raises(
        errors.DataError,
        match=r"mnist\.npz has no array y_train, x_test, y_test; it needs x_train, "
        r"y_train, x_test, y_test and has images, x_train",
    ):
        catalog.load("mnist", tmp_path)


def test_an_npz_whose_labels_are_no_whole_numbers_is_refused(tmp_path):
    arrays = images(20)
    arrays["y_train"] = arrays["y_train"] + 0.5
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(errors.DataError, match=r"y_train float64 \[20\]; images"):
        catalog.load("cifar10", tmp_path)


def test_the_har_archive_is_read_as_uci_gives_it_out(tmp_path):
    root = tmp_path / "UCI HAR Dataset"
    rng = np.random.default_rng(0)
    signals = {}
    for part, subjects, labels in (
        ("train", [1, 1, 1, 1, 3, 3], [5, 5, 4, 4, 4, 4]),
        ("test", [2, 2], [1, 2]),
    ):
        folder = root / part / "Inertial Signals"
        folder.mkdir(parents=True)
        for signal in ("body_acc", "body_gyro", "total_acc"):
            for axis in "xyz":
                values = rng.normal(size=[len(labels), 128])
                signals[part, f"{signal}_{axis}"] = values
                np.savetxt(folder / f"{signal}_{axis}_{part}.txt", values)
        np.savetxt(root / part / f"y_{part}.txt", labels, fmt="%d")
        np.savetxt(root / part / f"subject_{part}.txt", subjects, fmt="%d")
    data = catalog.load("uci_har", tmp_path)
    assert data.x.shape == (8, 128, 9)
    assert np.allclose(data.x[:6, :, 3], signals["train", "body_gyro_x"])
    assert data.y.tolist() == [4, 4, 3, 3, 3, 3, 0, 1]
    assert data.new_keys == {2}
    # Runs of one person at one activity.
    assert len(set(data.groups)) == 5
    assert len(set(data.groups[:2])) == 1
    (root / "test" / "y_test.txt").write_text("walking\n")
    with pytest.raises(errors.DataError, match="UCI HAR Dataset is damaged"):
        catalog.load("uci_har", tmp_path)


@needs_data
@pytest.mark.parametrize(
    ("name", "a", "num_rows"), [("mnist", 196, 36750), ("cifar10", 68, 12750)]
)
def test_the_papers_partition_of_images_has_the_papers_counts(
    tmp_path, name, a, num_rows
):
    store = prepare(DataConfig.of(name), tmp_path / name, DATA_DIR)
    assert store.num_users == 50
    # 25 users of 5 a and 25 of 5 a / 2.
    assert sum(len(store.adaptation(u).y) for u in range(50)) == num_rows
    for user in range(50):
        for rows, size in ((store.adaptation(user), a), (store.evaluation(user), 34)):
            if user < 25:
                assert counts(rows).tolist() == [size] * 5 + [0] * 5
            else:
                assert sorted(counts(rows)) == [0] * 8 + [size // 2, 2 * size]
        own = [
            set(np.flatnonzero(counts(r)))
            for r in (store.adaptation(user), store.evaluation(user))
        ]
        assert own[0] == own[1]
    # Evaluation rows are the data set's own test rows.
    with np.load(
        pathlib.Path(DATA_DIR) / f"{'mnist_by_writer' if name == 'mnist' else name}.npz"
    ) as arrays:
        test_rows = {x.tobytes() for x in arrays["x_test"]}
    assert all(x.tobytes() in test_rows for x in store.evaluation(30).x)


@needs_data
def test_writers_people_and_speakers_are_users(tmp_path):
    stores = {
        name: prepare(DataConfig.of(name), tmp_path / name, DATA_DIR)
        for name in ("mnist_by_writer", "uci_har", "shakespeare")
    }
    writers = stores["mnist_by_writer"]
    assert (len(writers.training_users), len(writers.new_users)) == (539, 297)
    assert writers.num_rows == 70000
    people = stores["uci_har"]
    assert (len(people.training_users), len(people.new_users)) == (21, 9)
    assert people.num_rows == 10299
    assert people.user_name(people.new_users[0]) == "2"
    for user in range(30):
        splits = (people.adaptation(user), people.evaluation(user))
        assert all(set(rows.y) == set(range(6)) for rows in splits)
    speakers = stores["shakespeare"]
    with np.load(pathlib.Path(DATA_DIR) / "tinyshakespeare_by_speaker.npz") as arrays:
        lengths = np.diff(arrays["offset"])
    # Of 24 windows of 41 characters and more.
    assert speakers.num_users == np.count_nonzero(lengths >= 24 * 41) == 143
    assert "ROMEO" in {speakers.user_name(user) for user in range(143)}
    # Evaluation comes after adaptation in the speaker's text.
    data = catalog.load("shakespeare", DATA_DIR)
    own = data.x[data.keys == speakers.user_name(0)]
    read = [speakers.adaptation(0).x, speakers.evaluation(0).x]
    assert np.array_equal(np.concatenate(read), own)


@needs_data
def test_overlapping_windows_never_meet_across_the_splits(tmp_path):
    # Windows overlap by half, so the second half of one is the first of the next.
    people = prepare(DataConfig.of("uci_har"), tmp_path / "har", DATA_DIR)
    for user in range(people.num_users):
        halves = []
        for rows in (people.adaptation(user), people.evaluation(user)):
            halves.append({half.tobytes() for x in rows.x for half in (x[:64], x[64:])})
        assert not halves[0] & halves[1]


def test_stores_of_the_catalogue_open_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(DataConfig.of("digits"), "digits")
    store = UserStore.open("digits")
    monkeypatch.chdir("/")
    assert len(store.adaptation(0).y) == 40
    assert pathlib.Path(store.file("users")).is_absolute()

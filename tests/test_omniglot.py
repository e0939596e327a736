"""Omniglot: its files, its users, and that nobody trains on what judges another."""

import io
import os
import pathlib
import sys
import types
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.needs import needs_data
from tff_perfedavg import errors
from tff_perfedavg.data import catalog, partition
from tff_perfedavg.data.config import DataConfig
from tff_perfedavg.experiments.assemble.prepare import prepare

DATA_DIR = os.environ.get(catalog.DATA_DIR_VARIABLE)
SIGNS = pathlib.Path(__file__).parent / "data" / "signs.tflite"
PEOPLE = 6


def ink_of(alphabet, character, person):
    """Some drawing, 105 x 105 pixels, black ink being 1."""
    rng = np.random.default_rng([len(alphabet), character, person])
    return (rng.random([105, 105]) < 0.05 * person).astype(np.float32)


def write_archive(path, alphabets):
    """An archive as Omniglot's are, of some characters of each alphabet."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/", "")
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                for person in range(1, PEOPLE + 1):
                    pixels = 255 * (1 - ink_of(alphabet, character, person))
                    file = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
                    archive.writestr(
                        f"{path.stem}/{alphabet}/character{character:02}/"
                        f"0{character}00_{person:02}.png",
                        file.getvalue(),
                    )


@pytest.fixture
def archives(tmp_path):
    write_archive(tmp_path / "images_background.zip", {"Latin": 5, "Tagalog": 4})
    # The small sets repeat what the large one has.
    write_archive(tmp_path / "images_background_small1.zip", {"Latin": 5})
    write_archive(tmp_path / "images_evaluation.zip", {"Atlantean": 6})
    return tmp_path


def test_archives_are_read_as_they_are_given_out(archives):
    data = catalog.load("omniglot", archives)
    assert data.x.shape == ((5 + 4 + 6) * PEOPLE, 28, 28)
    assert data.x.dtype == np.uint8
    assert data.num_classes == 15
    assert {*data.new_keys} == {"Atlantean"}
    assert {*data.keys} == {"Latin", "Tagalog", "Atlantean"}
    place = data.class_names.index("Tagalog/character03")
    of_character = data.x[data.y == place]
    assert len(of_character) == PEOPLE
    # Averages over areas of 3.75 x 3.75 pixels, by the definition.
    ink = ink_of("Tagalog", 3, 2)
    fine = ink.repeat(4, 0).repeat(4, 1).reshape(28, 15, 28, 15).mean((1, 3))
    assert np.abs(of_character[1] - 255 * fine).max() <= 0.5 + 1e-3


def test_tensorflow_datasets_gives_what_the_archives_do(archives, monkeypatch):
    """A stand-in with the features of its catalogue's page; the package is not here."""
    of_archives = catalog.load("omniglot", archives)
    alphabets = ["Atlantean", "Latin", "Tagalog"]

    def load(name, *, split, data_dir, with_info):
        assert (name, data_dir, with_info) == ("omniglot", empty, True)
        parts = {"train": {"Latin": 5, "Tagalog": 4}, "test": {"Atlantean": 6}}
        rows = [
            {
                "alphabet": alphabets.index(alphabet),
                "alphabet_char_id": character,
                "image": np.uint8(255 * (1 - ink_of(alphabet, character + 1, person)))[
                    ..., np.newaxis
                ].repeat(3, -1),
            }
            for alphabet, characters in parts[split].items()
            for character in range(characters)
            for person in range(1, PEOPLE + 1)
        ]
        names = types.SimpleNamespace(names=alphabets)
        return rows, types.SimpleNamespace(features={"alphabet": names})

    installed = types.SimpleNamespace(load=load, as_numpy=iter)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", installed)
    empty = archives / "empty"
    empty.mkdir()
    found = catalog.load("omniglot", empty)
    assert found.class_names == of_archives.class_names
    assert found.new_keys == of_archives.new_keys

    def drawings(data):
        return sorted(
            (data.class_names[y], key, x.tobytes())
            for x, y, key in zip(data.x, data.y, data.keys, strict=True)
        )

    assert drawings(found) == drawings(of_archives)


def test_a_damaged_archive_is_named(archives):
    path = archives / "images_background.zip"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(errors.DataError, match=r"images_background\.zip is damaged"):
        catalog.load("omniglot", archives)


def test_an_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w") as archive:
        archive.writestr("read.me", "hello")
    with pytest.raises(errors.DataError, match="holds no drawings"):
        catalog.load("omniglot", tmp_path)


def test_what_is_missing_is_told_with_where_to_put_it(tmp_path):
    with pytest.raises(
        errors.DataError, match=r"omniglot was not found: no omniglot_small\.npz or im"
    ):
        catalog.load("omniglot", tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("omniglot")
    write_archive(root / "images_background.zip", {"Latin": 7, "Tagalog": 6})
    write_archive(root / "images_evaluation.zip", {"Atlantean": 6})
    config = DataConfig.of("omniglot", num_users=30, num_new_users=10)
    return prepare(config, root / "store", root)


def test_a_user_holds_characters_of_one_alphabet_and_new_users_another(store):
    assert store.training_users.tolist() == [*range(20)]
    assert store.new_users.tolist() == [*range(20, 30)]
    for user in range(30):
        names = store.label_names(user)
        assert len({*names}) == 5
        (alphabet,) = {name.split("/")[0] for name in names}
        assert (alphabet == "Atlantean") == (user >= 20)
        assert store.user_name(user).startswith(f"{alphabet}/")
        # Of those who train, more to learn from.
        judging = PEOPLE // 2 if user >= 20 else 1
        for split, count in (
            (store.adaptation(user), PEOPLE - judging),
            (store.evaluation(user), judging),
        ):
            assert np.bincount(split.y).tolist() == [count] * 5


def upright(image):
    """Turned to whatever way up sorts first, so that turned drawings are the same."""
    return min(np.rot90(image, turns).tobytes() for turns in range(4))


def test_no_drawing_that_anybody_adapts_on_judges_anybody(store):
    splits = [
        {upright(x) for user in range(30) for x in split(user).x}
        for split in (store.training, store.evaluation)
    ]
    assert not splits[0] & splits[1]


def test_users_who_train_see_turned_drawings_and_new_users_do_not(store, tmp_path):
    write_archive(tmp_path / "images_background.zip", {"Latin": 7, "Tagalog": 6})
    write_archive(tmp_path / "images_evaluation.zip", {"Atlantean": 6})
    drawn = {x.tobytes() for x in catalog.load("omniglot", tmp_path).x}
    is_upright = [
        {x.tobytes() in drawn for x in store.adaptation(user).x} for user in range(30)
    ]
    # All of a user's, or none.
    assert all(len(found) == 1 for found in is_upright)
    assert all(found == {True} for found in is_upright[20:])
    assert 0 < sum(found == {True} for found in is_upright[:20]) < 14
    config = DataConfig.of(
        "omniglot", num_users=20, num_new_users=5, turned_classes=False
    )
    plain = prepare(config, tmp_path / "plain", tmp_path)
    assert {x.tobytes() for x in plain.features} <= drawn


def test_tasks_are_drawn_in_proportion_to_a_familys_classes():
    labels = np.arange(12)
    families = np.array(["a"] * 9 + ["b"] * 3)
    found = partition.tasks(labels, families, 3, 2000, seed=0)
    share = np.mean([family == "a" for family, _ in found])
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 2000)
    for family, classes in found:
        assert len({*classes}) == 3
        assert {*families[classes]} == {family}
    again = partition.tasks(labels, families, 3, 2000, seed=0)
    assert [c.tolist() for _, c in found] == [c.tolist() for _, c in again]
    with pytest.raises(errors.DataError, match="the family b has 3 classes"):
        partition.tasks(labels, families, 4, 1, seed=0)


def test_the_guards_benchmark_prints_and_writes_its_table(run, store, tmp_path):
    answer = run(
        "benchmark_guard.py",
        f"--model={SIGNS}",
        f"--store={store.path}",
        "--num_users=2",
        "--steps=2",
        f"--output={tmp_path / 'guard.csv'}",
    )
    assert answer.returncode == 0, answer.stderr
    assert "2 new users, at most 2 steps" in answer.stdout
    table = pd.read_csv(tmp_path / "guard.csv", index_col="weights")
    assert [*table.index] == [
        "all rows, all steps",
        "all rows, steps by the guard",
        "all rows, the best step",
        "rows not held back, the best step",
    ]
    assert table.iloc[:, ::2].gt(0).all(axis=None)


@needs_data
def test_the_small_sets_of_alphabets(tmp_path):
    store = prepare(
        DataConfig.of("omniglot", num_users=60, num_new_users=20), tmp_path / "store"
    )
    assert store.input_shape == (28, 28)
    assert len(store.description.source_classes) == 242
    alphabets = {store.label_names(user)[0].split("/")[0] for user in store.new_users}
    assert alphabets == {"Greek", "Sanskrit"}
    for user, judging in ((store.new_users[0], 10), (store.training_users[0], 4)):
        assert len(store.adaptation(user).y) == 5 * (20 - judging)
        assert len(store.evaluation(user).y) == 5 * judging

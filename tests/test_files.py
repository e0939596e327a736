"""Files and directories that appear whole, beside writers that live and that died."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from tff_perfedavg.files import (
    atomic_directory,
    atomic_write,
    in_turn,
    remove_unfinished,
)

WRITER = """
import pathlib, sys
from tff_perfedavg.files import atomic_directory, atomic_write

place = pathlib.Path(sys.argv[1])
with atomic_directory(place / "store") as directory, atomic_write(place / "f") as file:
    (directory / "half").write_text("half")
    file.write(b"half")
    print("half", flush=True)
    sys.stdin.readline()
    file.write(b" and half")
"""


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@contextlib.contextmanager
def writer_at_work(place):
    """A process in the middle of writing `store` and `f`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "half\n"
            yield process
        finally:
            process.kill()


def killed(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("write", [atomic_directory, atomic_write])
def test_what_a_killed_writer_left_is_removed_at_the_next_write(tmp_path, write):
    with writer_at_work(tmp_path) as process:
        killed(process)
    assert len(names_in(tmp_path)) == 2
    with write(tmp_path / "other"):
        pass
    assert names_in(tmp_path) == ["other"]


def test_what_a_writer_at_work_holds_is_left_to_it(tmp_path):
    with writer_at_work(tmp_path) as process:
        with atomic_directory(tmp_path / "other"), atomic_write(tmp_path / "more"):
            assert len(names_in(tmp_path)) == 4
        remove_unfinished(tmp_path)
        assert len(names_in(tmp_path)) == 4
        process.communicate("go on\n")
        assert process.returncode == 0
    assert names_in(tmp_path) == ["f", "more", "other", "store"]
    assert (tmp_path / "f").read_text() == "half and half"
    assert (tmp_path / "store" / "half").read_text() == "half"


def test_hidden_files_of_others_are_left_alone(tmp_path):
    (tmp_path / ".hidden").write_text("mine")
    (tmp_path / ".link.unfinished").symlink_to(tmp_path / ".hidden")
    (tmp_path / "plain.unfinished").write_text("mine")
    remove_unfinished(tmp_path)
    assert len(names_in(tmp_path)) == 3


def test_of_two_writers_of_one_directory_the_second_is_told(tmp_path):
    def write(content, meanwhile=contextlib.nullcontext):
        with atomic_directory(tmp_path / "store") as directory:
            (directory / "content").write_text(content)
            meanwhile()

    with pytest.raises(FileExistsError, match="store"):
        write("second", lambda: write("first"))
    assert (tmp_path / "store" / "content").read_text() == "first"
    assert names_in(tmp_path) == ["store"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    name = "n" * 255
    with atomic_write(tmp_path / name) as file:
        file.write(b"content")
    assert (tmp_path / name).read_bytes() == b"content"


def test_without_locks_writing_works_and_nothing_is_removed(tmp_path, monkeypatch):
    (tmp_path / ".f.x.unfinished").write_text("perhaps of one at work")

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with atomic_directory(tmp_path / "store"), atomic_write(tmp_path / "f"):
        pass
    with in_turn(tmp_path / "lock", pytest.fail):
        pass
    assert names_in(tmp_path) == [".f.x.unfinished", "f", "store"]


TURN = """
import os, pathlib, sys
from tff_perfedavg.files import in_turn

place = pathlib.Path(sys.argv[1])
sys.stdin.readline()
for _ in range(50):
    with in_turn(place / "lock", lambda: None):
        os.mkdir(place / "inside")
        os.rmdir(place / "inside")
"""


def test_processes_take_turns_and_leave_no_lock_behind(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TURN, tmp_path], stdin=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        # Two inside at once would fail to make the directory.
        assert process.returncode == 0
    assert names_in(tmp_path) == []


def test_the_lock_of_one_that_was_killed_is_no_lock(tmp_path):
    script = TURN.replace("os.mkdir", "os._exit(9) or os.mkdir")
    subprocess.run([sys.executable, "-c", script, tmp_path], input=b"go\n")
    assert names_in(tmp_path) == ["lock"]
    with in_turn(tmp_path / "lock", pytest.fail):
        assert os.path.exists(tmp_path / "lock")
    assert names_in(tmp_path) == []

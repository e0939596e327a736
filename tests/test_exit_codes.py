"""What is said of processes that ended, here real ones."""

import signal
import subprocess
import sys

import pytest

from tff_perfedavg.runtime.exit_codes import explain, remedies

TRUNCATED = """
import mmap
with open("store", "wb+") as file:
    file.write(bytes(10000))
    file.flush()
    mapped = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    mapped[9000]
"""
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (TRUNCATED, "code -7 (SIGBUS, usually a mapped file that is shorter than it"),
        (KILLED, "code -9 (SIGKILL, usually for want of memory, by the kernel: take"),
        (KILLED.replace("KILL", "HUP"), "code -1 (SIGHUP)"),
        ("raise SystemExit(3)", "code 3"),
    ],
)
def test_an_exit_code_is_told_with_what_it_usually_means(tmp_path, script, told):
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path)
    assert explain(ended.returncode).startswith(told)
    killed = ended.returncode == -signal.SIGKILL
    assert remedies(ended.returncode) == (
        ("block_size", "batch_size") if killed else ()
    )

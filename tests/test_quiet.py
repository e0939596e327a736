"""Notices are left out of standard error; nothing else is, whatever happens."""

import subprocess
import sys

NOTICE = "x: Unable to register cuDNN factory: Attempting to register"
PROGRAM = f"""
import os
from tff_perfedavg import quiet
with quiet.without_notices():
    os.write(2, b"first\\n{NOTICE}\\nsecond\\n")
    ENDING
os.write(2, b"third\\n")
"""


def printed(ending):
    program = PROGRAM.replace("ENDING", ending)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def test_all_but_notices_is_passed_on_in_order():
    assert printed("pass") == (0, "first\nsecond\nthird\n")


def test_what_is_said_before_an_abort_is_not_lost():
    code, text = printed("os.abort()")
    assert code == -6
    assert text.startswith("first\nsecond\n")


def test_an_error_within_is_told():
    code, text = printed("raise ValueError('within')")
    assert code == 1
    assert text.startswith("first\nsecond\n")
    assert "ValueError: within" in text


def test_a_process_started_within_does_not_hold_it_up():
    code, text = printed(
        "import subprocess, time\n"
        "    start = time.monotonic()\n"
        "    subprocess.Popen(['sleep', '5'])\n"
        "assert time.monotonic() - start < 4"
    )
    assert code == 0
    assert text.endswith("third\n")

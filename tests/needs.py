"""What some tests need, of the machine or of time.

Without what they need of the machine they are skipped, and counted.

Reasons begin with the kind of what is missing. `TFF_PERFEDAVG_TESTS_NEED` lists kinds
that this machine can serve: there a skip for want of them fails.
"""

import os
import shutil

import pytest

from tff_perfedavg.data.catalog import DATA_DIR_VARIABLE

BROWSER, COMPILER, DATA, KOTLIN, ROOT = KINDS = (
    "browser",
    "compiler",
    "data",
    "kotlin",
    "root",
)
VARIABLE = "TFF_PERFEDAVG_TESTS_NEED"


def needs(kind, is_there, how):
    """A mark of tests that need something; `how` says by what it is missed."""
    return pytest.mark.skipif(not is_there, reason=f"{kind}: {how}")


def slow_but(quick, values):
    """Values as parameters of a test, of which all but the quick ones are slow."""
    return [
        pytest.param(value, marks=() if value in quick else pytest.mark.slow)
        for value in values
    ]


needs_compiler = needs(COMPILER, shutil.which("cc"), "there is no 'cc' on the PATH")
needs_data = needs(
    DATA, os.environ.get(DATA_DIR_VARIABLE), f"{DATA_DIR_VARIABLE} is not set"
)
needs_kotlin = needs(
    KOTLIN, shutil.which("kotlinc"), "there is no 'kotlinc' on the PATH"
)
needs_networks = needs(
    ROOT,
    os.geteuid() == 0 and shutil.which("ip"),
    "networks of their own need root and iproute2",
)
needs_user_namespaces = needs(
    ROOT,
    os.geteuid() == 0 and shutil.which("unshare"),
    "the limit is set by root, in a user namespace of its own",
)


def is_needed(reason):
    """Whether what was skipped for this reason must run on this machine."""
    return reason.partition(":")[0] in os.environ.get(VARIABLE, "").split()

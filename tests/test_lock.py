"""The lock holds what the packages in it need, and the commands the docs advise run."""

import importlib.metadata
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tff_perfedavg.experiments.files.metrics_log import MetricsLog

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = pathlib.Path(sys.executable).parent
TEXTS = (MetricsLog.ROUNDS, MetricsLog.EVALUATIONS, MetricsLog.EVENTS)
# What packages ask for and the toolkit does without.
LEFT_OUT = {
    # Only to build from source.
    ("astunparse", "wheel"),
    ("tensorflow", "libclang"),
    # Only for what is not used: Google's cloud, a service that tunes, compilers of
    # phones' makers, noise of other kinds.
    ("tensorflow", "tensorflow-io-gcs-filesystem"),
    ("google-vizier", "grpcio-tools"),
    ("google-vizier", "sqlalchemy"),
    ("ai-edge-litert", "backports-strenum"),
    ("dp-accounting", "mpmath"),
    # Pins a release that is no longer published.
    ("tensorflow-federated", "jax"),
    ("tensorflow-federated", "jaxlib"),
}


def locked():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    # Some are needed by older Pythons alone.
    return [r for r in found if not r.marker or r.marker.evaluate()]


def test_what_is_installed_is_what_the_lock_says():
    for requirement in locked():
        found = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(found), requirement


def test_the_lock_holds_all_that_its_packages_need():
    versions = {
        canonicalize_name(r.name): importlib.metadata.version(r.name) for r in locked()
    }
    unmet = set()
    for name in versions:
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            version = versions.get(canonicalize_name(needed.name))
            if version is None or not needed.specifier.contains(version):
                unmet.add((name, canonicalize_name(needed.name)))
    assert unmet == LEFT_OUT


def test_tensorboard_starts_and_shows_a_run(tmp_path):
    log = MetricsLog({n: tmp_path / n for n in TEXTS}, tmp_path / "logdir", {})
    log.add_round(0, {"loss": 1.0})
    log.close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with subprocess.Popen(
        [
            COMMANDS / "tensorboard",
            *(f"--logdir={tmp_path}", f"--port={port}", "--host=127.0.0.1"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            tags = ask(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", process)
        finally:
            process.terminate()
    assert "training/loss" in tags


def ask(address, process, seconds=120):
    """What a server answers once it has something to tell."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        try:
            with urllib.request.urlopen(address) as answer:
                text = answer.read().decode()
        except urllib.error.URLError:
            text = ""
        if len(text) > len("{}\n"):
            return text
        time.sleep(0.2)
    pytest.fail(f"{address} tells nothing")


def test_every_command_that_the_docs_advise_is_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    advised = {
        name
        for page in pages
        for name in re.findall(r"\.venv/bin/([a-z][\w-]*)", page.read_text())
    }
    assert {"python", "tensorboard"} <= advised
    for name in advised:
        assert (COMMANDS / name).is_file(), name

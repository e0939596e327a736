"""Remedies of errors, as command-line flags and commands."""

from __future__ import annotations

import re
from collections.abc import Container

from tff_perfedavg import errors

PROGRAM = "tff-perfedavg"
# Modules of `commands` by the sub-command's name, in the order of the work.
SUB_COMMANDS = {
    "demo": "demo",
    "prepare-data": "prepare_data",
    "train": "train",
    "evaluate": "evaluate",
    "report": "report",
    "diagnose": "diagnose",
    "personalize": "personalize",
    "advise": "advise",
    "sweep": "sweep",
    "reproduce-paper": "reproduce_paper",
    "simulate-fleet": "simulate_fleet",
    "start-worker": "start_worker",
    "export": "export_tflite",
    "personalize-on-device": "personalize_on_device",
}
# Commands for those who do not call the library's functions.
_COMMANDS = {
    "UserStore.write": "scripts/prepare_data.py",
    "worker_process.serve": "scripts/start_worker.py",
}
_BY_MODULE = {module: f"{PROGRAM} {name}" for name, module in SUB_COMMANDS.items()}
# A command's file, and not a path of the user's that ends like one.
_SCRIPT = re.compile(
    rf"(?<![\w./-])(?:scripts/)?({'|'.join(_BY_MODULE)})\.py\b(?![\w:])"
)


def on_the_command_line(error: errors.PerFedAvgError, known: Container[str]) -> str:
    """Returns a line with an error's remedies as flags and commands, '' without any.

    Args:
      error: names its remedies as the library calls them.
      known: names of the command's flags; others are not told.
    """
    found = [
        _COMMANDS.get(name, f"--{name}")
        for name in error.remedies
        if name in _COMMANDS or name.partition("=")[0] in known
    ]
    return f"\nOn the command line: {', '.join(found)}." if found else ""


def as_called(text: str, program: str) -> str:
    """Returns a text in which commands are called as the user called this one.

    Args:
      text: calls them by their files in a checkout, `scripts/train.py`.
      program: how this one was called; `tff-perfedavg train` where it is installed.
    """
    if not program.startswith(f"{PROGRAM} "):
        return text
    return _SCRIPT.sub(lambda match: _BY_MODULE[match[1]], text)

"""What mends an error, as the command line calls it."""

from __future__ import annotations

from collections.abc import Container

from tff_perfedavg import errors

# Commands for those who do not call the library's functions.
_COMMANDS = {
    "UserStore.write": "scripts/prepare_data.py",
    "worker_process.serve": "scripts/start_worker.py",
}


def on_the_command_line(error: errors.PerFedAvgError, known: Container[str]) -> str:
    """Returns a line that tells flags and commands, or '' where there are none.

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

"""The command `tff-perfedavg`, with a sub-command for each job."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence

from absl import flags

from tff_perfedavg import __version__
from tff_perfedavg.experiments.settings import command
from tff_perfedavg.experiments.settings.remedies import PROGRAM, SUB_COMMANDS

_TITLE = "Per-FedAvg: meta-learning an initial model that every user adapts to itself."
_MORE = f"{PROGRAM} SUB-COMMAND --help lists its flags."


def main() -> None:
    """Runs the sub-command that this process's arguments name and ends the process."""
    # absl's own log asks the process's flags where to write.
    flags.FLAGS.mark_as_parsed()
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Runs a sub-command in this process.

    Args:
      arguments: the sub-command's name, then its flags.

    Returns:
      The exit code: 0 where all went well, 1 for an error of the user's.
    """
    if not arguments or arguments[0] in ("help", "--help", "-h", "-?", "--helpfull"):
        code = command.tell(_overview())
        return code if arguments else 1
    name, *rest = arguments
    if name == "--version":
        return command.tell(f"{PROGRAM} {__version__}")
    if name not in SUB_COMMANDS:
        known = ", ".join(SUB_COMMANDS)
        print(f"error: {PROGRAM} has no {name!r}; known: {known}.", file=sys.stderr)
        return 1
    module = _module(name)
    return command.execute([f"{PROGRAM} {name}", *rest], module.main, module.define)


def _module(name: str):
    return importlib.import_module(f"tff_perfedavg.commands.{SUB_COMMANDS[name]}")


def _overview() -> str:
    width = max(map(len, SUB_COMMANDS))
    lines = [
        f"  {name:{width}}  {(inspect.getdoc(_module(name)) or '').splitlines()[0]}"
        for name in SUB_COMMANDS
    ]
    return "\n".join([_TITLE, "", *lines, "", _MORE])

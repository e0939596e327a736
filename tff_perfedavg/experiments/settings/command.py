"""Command-line runner: flags, help, exit codes, errors without a traceback."""

from __future__ import annotations

import errno
import os
import pathlib
import select
import sys
from collections.abc import Callable, Iterable, Sequence

from absl import app, flags, logging

from tff_perfedavg import errors, quiet
from tff_perfedavg.experiments.settings.remedies import (
    as_called,
    on_the_command_line,
)

_ANOTHER_PLACE = "choose another place, or change its permissions"
_FREE_SPACE = "free some space, or choose another place"
# What a place can say that a flag named and that takes no files.
_REMEDIES = {
    errno.EACCES: _ANOTHER_PLACE,
    errno.EPERM: _ANOTHER_PLACE,
    errno.EROFS: "choose another place",
    errno.ENOTDIR: "a file is where a directory is needed; choose another place",
    errno.EEXIST: "a file is where a directory is needed; choose another place",
    errno.EISDIR: "a directory is where a file is needed; choose another place",
    errno.ENAMETOOLONG: "a name may have 255 bytes; choose a shorter one",
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
}
# Packages that a device's client is installed without.
_SIMULATION = {
    "jinja2",
    "matplotlib",
    "pandas",
    "psutil",
    "scipy",
    "sklearn",
    "tensorflow",
    "tensorflow_federated",
    "tqdm",
}
# All packages, to be installed without resolving.
_LOCK = pathlib.Path(__file__).parents[2] / "requirements.txt"
# As shells tell that Ctrl-C ended a command.
_INTERRUPTED = 130
# And that nobody read on.
_BROKEN_PIPE = 141


def run(
    main: Callable[[flags.FlagValues], None], define: Callable[[flags.FlagValues], None]
) -> None:
    """Runs a command on this process's arguments and ends the process.

    Args:
      main: does the job, given the parsed flags.
      define: defines the flags on the values it is given.
    """
    # absl's own log asks the process's flags where to write.
    flags.FLAGS.mark_as_parsed()
    sys.exit(execute(sys.argv, main, define))


def execute(
    argv: Sequence[str],
    main: Callable[[flags.FlagValues], None],
    define: Callable[[flags.FlagValues], None],
) -> int:
    """Parses flags and runs a command in this process, any number of times.

    An error of ours is printed as one message, with exit code 1, and so is a place
    that takes no files. Anything else is a defect and keeps its traceback.

    Args:
      argv: the command's name and its arguments.
      main: does the job, given the parsed flags.
      define: defines the flags on the values it is given.

    Returns:
      The exit code.
    """
    # Not `app.run`: where TensorFlow is first imported inside it, Keras takes itself to
    # be in TensorFlow 1 and cannot build models.
    flag_values = flags.FlagValues()
    try:
        _parse(argv, define, flag_values)
        main(flag_values)
    except _HelpGivenError:
        return 0
    except flags.Error as e:
        return _fail(as_called(f"{e}\n--help lists the flags.", argv[0]))
    except errors.Interrupted as e:
        print(e, file=sys.stderr)
        return _INTERRUPTED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except errors.PerFedAvgError as e:
        told = f"{e}{on_the_command_line(e, flag_values)}"
        return _fail(as_called(told, argv[0]))
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] not in _SIMULATION:
            raise
        return _fail(
            f"{e.name} is not installed, which this command needs. Install the locked "
            f"packages: pip install --no-deps -r {_LOCK}"
        )
    except BrokenPipeError as e:
        return _reader_gone(e)
    except OSError as e:
        if e.filename is None or e.errno not in _REMEDIES:
            raise
        return _fail(f"{e.filename}: {e.strerror}; {_REMEDIES[e.errno]}.")
    return 0


def tell(text: str) -> int:
    """Prints a text that was asked for.

    Returns:
      The exit code, also where who reads it, `head` for one, has had enough.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError as e:
        return _reader_gone(e)
    return 0


def _reader_gone(broken: BrokenPipeError) -> int:
    """Returns the exit code where standard output's pipe has broken; else raises."""
    if not _nobody_reads():
        raise broken
    # Python flushes once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _BROKEN_PIPE


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader is gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


class _HelpGivenError(Exception):
    """Raised when help was asked for and printed, in place of the job."""


class _HelpFlag(flags.BooleanFlag):
    """A flag that prints help where it is met, before others are checked."""

    def __init__(self, name, text, tell, short_name=None):
        super().__init__(name, False, text, short_name, allow_hide_cpp=True)
        self._tell = tell

    def parse(self, argument):
        if self._parse(argument):
            self._tell()
            raise _HelpGivenError


def _parse(
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    flag_values: flags.FlagValues,
) -> None:
    """Parses a command's flags, those that every command of absl has included."""
    define(flag_values)
    _define_help_flags(flag_values, define.__module__, argv[0])
    for module in (app.__name__, logging.__name__):
        for flag in flags.FLAGS.get_flags_for_module(module):
            if flag.name not in flag_values:
                flags.DEFINE_flag(flag, flag_values, module)
    rest = flag_values(argv)[1:]
    if rest:
        raise errors.ConfigError(f"unknown argument {rest[0]!r}; flags begin with --.")


def _define_help_flags(
    flag_values: flags.FlagValues, module: str, program: str
) -> None:
    # Not absl's own, which are of the process's flags.
    document = sys.modules[module].__doc__
    # absl knows the main module by the command's name.
    name = sys.argv[0] if module == "__main__" else module

    def short():
        text = f"{document}\nflags:\n{flag_values.module_help(name)}\n"
        print(as_called(text, program))
        print("Try --helpfull to get a list of all flags.")

    def full():
        text = f"{document}\nflags:\n{flag_values.get_help()}"
        print(as_called(text, program))

    def xml():
        flag_values.write_help_in_xml_format(sys.stdout)

    for flag in (
        _HelpFlag("help", "show this help", short, short_name="?"),
        _HelpFlag("helpshort", "show this help", short),
        _HelpFlag("helpfull", "show full help", full),
        _HelpFlag("helpxml", "like --helpfull, but generates XML output", xml),
    ):
        flags.DEFINE_flag(flag, flag_values, app.__name__)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def numbers(
    flag_values: flags.FlagValues, name: str, kind: type[int] | type[float]
) -> list:
    """Returns the values of a list flag as numbers.

    Args:
      flag_values: the parsed flags.
      name: the flag's.
      kind: `int` or `float`.

    Raises:
      ConfigError: naming the flag and the value that is none.
    """
    found = []
    for text in flag_values[name].value:
        try:
            found.append(kind(text))
        except ValueError:
            raise errors.ConfigError(
                f"{name} has {text!r}; it takes "
                f"{'whole ' if kind is int else ''}numbers, separated by commas."
            ) from None
    return found


def warn(warnings: Iterable[str]) -> None:
    """Prints warnings to standard error, a line each."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def load_frameworks() -> None:
    """Imports TensorFlow and TFF without their start-up notices.

    Commands call it once their flags are checked: `--help` and a mistyped flag
    answer at once.
    """
    quiet.import_module("tensorflow_federated")

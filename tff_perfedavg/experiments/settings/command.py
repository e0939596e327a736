"""What every command shares: errors without a traceback, frameworks without noise."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable

from absl import app, flags

from tff_perfedavg import errors, quiet
from tff_perfedavg.experiments.settings.remedies import on_the_command_line

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
# As shells tell that Ctrl-C ended a command.
_INTERRUPTED = 130


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs a command.

    An error of ours is printed as one message, with exit code 1, and so is a place
    that takes no files. Anything else is a defect and keeps its traceback.
    """
    # Not `app.run`: where TensorFlow is first imported inside it, Keras takes itself to
    # be in TensorFlow 1 and cannot build models.
    app.define_help_flags()
    try:
        argv = flags.FLAGS(sys.argv)
    except SystemExit:
        # That help was printed; absl takes it for a failure.
        sys.exit(0)
    except flags.Error as e:
        sys.exit(f"error: {e}\n--help lists the flags.")
    if len(argv) > 1:
        sys.exit(f"error: unknown argument {argv[1]!r}; flags begin with --.")
    try:
        main()
    except errors.Interrupted as e:
        print(e, file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except errors.PerFedAvgError as e:
        sys.exit(f"error: {e}{on_the_command_line(e, flags.FLAGS)}")
    except OSError as e:
        if e.filename is None or e.errno not in _REMEDIES:
            raise
        sys.exit(f"error: {e.filename}: {e.strerror}; {_REMEDIES[e.errno]}.")


def numbers(flag: flags.FlagHolder, kind: type[int] | type[float]) -> list:
    """Returns the values of a list flag as numbers.

    Raises:
      ConfigError: naming the flag and the value that is none.
    """
    found = []
    for text in flag.value:
        try:
            found.append(kind(text))
        except ValueError:
            raise errors.ConfigError(
                f"{flag.name} has {text!r}; it takes "
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

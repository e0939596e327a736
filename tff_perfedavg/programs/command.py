"""What every command shares: errors without a traceback, frameworks without noise."""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import app, flags

from tff_perfedavg import errors, quiet

# As shells tell that Ctrl-C ended a command.
_INTERRUPTED = 130


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs a command.

    An error of ours is printed as one message, with exit code 1. Anything else is
    a defect and keeps its traceback.
    """
    # Not `app.run`: where TensorFlow is first imported inside it, Keras takes itself to
    # be in TensorFlow 1 and cannot build models.
    app.define_help_flags()
    argv = app.parse_flags_with_usage(sys.argv)
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
        sys.exit(f"error: {e}")


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


def load_frameworks() -> None:
    """Imports TensorFlow and TFF without their start-up notices.

    Commands call it once their flags are checked: `--help` and a mistyped flag
    answer at once.
    """
    quiet.import_module("tensorflow_federated")

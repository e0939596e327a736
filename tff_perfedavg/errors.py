"""The errors this library raises on purpose: `PerFedAvgError` and those below it.

`Interrupted` alone is none of them: who catches errors does not mean to catch Ctrl-C.
"""

from collections.abc import Iterable, Sequence


class PerFedAvgError(Exception):
    """Base of every error raised by `tff_perfedavg`.

    Attributes:
      remedies: what mends it, by its name in the library: arguments, with a value
        where only that will do (`address=0.0.0.0`), and functions. Commands tell what
        these are called on the command line.
    """

    def __init__(self, *args: object, remedies: Sequence[str] = ()):
        super().__init__(*args)
        self.remedies = tuple(remedies)


class ConfigError(PerFedAvgError, ValueError):
    """A configuration value is out of range; names the field and the remedy."""


class ModelError(PerFedAvgError, ValueError):
    """A model cannot be used; names the layer or weight and the alternative."""


class DataError(PerFedAvgError, ValueError):
    """User data cannot be used; names the data set, user or file."""


class WorkerError(PerFedAvgError, RuntimeError):
    """A TFF worker process could not be started, cannot be reached, or has ended."""


class Diverged(PerFedAvgError, ArithmeticError):
    """Training diverged: numbers are not finite; names the round and what is kept."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop by Ctrl-C or SIGTERM; what it has done is saved."""


class CheckpointError(PerFedAvgError, ValueError):
    """A saved run cannot be read; names the file and what is wrong with it."""


def check_known(field: str, value: str, known: Iterable[str]) -> None:
    """Raises `ConfigError`, listing the known values, if `value` is none of them.

    Args:
      field: the field's name, for the message.
      value: the field's value.
      known: the values that it may have.
    """
    if value not in known:
        raise ConfigError(f"{field} is {value!r}; known: {', '.join(known)}.")

"""Explanations of processes' exit codes and signals."""

from __future__ import annotations

import signal

_USUALLY = {
    signal.SIGBUS: (
        "usually a mapped file that is shorter than it was, as that of a store "
        "changed while it is in use, or a disk that fails"
    ),
    signal.SIGKILL: (
        "usually for want of memory, by the kernel: take a smaller block_size or "
        "batch_size, or a machine with more memory"
    ),
    signal.SIGABRT: "usually a failed check or an allocation refused, told in its log",
    signal.SIGSEGV: "a defect in it",
    signal.SIGILL: "usually a processor without the instructions it was built for",
}
_REMEDIES = {signal.SIGKILL: ("block_size", "batch_size")}


def explain(code: int) -> str:
    """Returns an exit code with its signal and its usual cause.

    Args:
      code: as `subprocess.Popen.returncode` has it, negative for a signal.

    Returns:
      For example `code -9 (SIGKILL, usually for want of memory, ...)`; plain `code 1`
      where the process ended by itself.
    """
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"code {code}"
    usually = _USUALLY.get(number)
    return f"code {code} ({number.name}{', ' + usually if usually else ''})"


def remedies(code: int) -> tuple[str, ...]:
    """Returns the arguments to make smaller, as `explain` advises.

    Args:
      code: as for `explain`.
    """
    return next((names for number, names in _REMEDIES.items() if number == -code), ())

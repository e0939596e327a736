"""A progress bar on a terminal; elsewhere, as in a log, a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """Interface of a progress bar: the part of tqdm's that is used here."""

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Sets the postfix: values shown behind the numbers, by name.

        Args:
          refresh: whether a bar is drawn anew at once.
          **values: what is shown, by name.
        """

    def update(self, n: int = 1) -> Any:
        """Advances by so many units that are done."""


@contextlib.contextmanager
def progress(
    *,
    total: int,
    desc: str,
    unit: str,
    initial: int = 0,
    patience: float = 0.0,
    file: TextIO | None = None,
) -> Iterator[Progress]:
    """Shows a progress bar for the block.

    Example:
      with progress(total=300, desc="training", unit="round") as bar:
          for _ in range(300):
              bar.set_postfix(loss="0.312", refresh=False)
              bar.update()

    Args:
      total: units there will be.
      desc: what is shown in front.
      unit: of what there are so many, in the singular.
      initial: units that are done before.
      patience: seconds; of a loop that ends sooner nothing is shown.
      file: where it is shown; by default standard error.
    """
    file = sys.stderr if file is None else file
    if file.isatty():
        with tqdm.tqdm(
            total=total,
            initial=initial,
            desc=desc,
            unit=unit,
            delay=patience,
            file=file,
        ) as bar:
            yield bar
        return
    lines = _Lines(total, initial, desc, unit, file, patience)
    try:
        yield lines
    finally:
        lines.close()


def tell(text: str) -> None:
    """Prints a line to standard error, above a progress bar if there is one."""
    tqdm.tqdm.write(text, file=sys.stderr)


class _Lines:
    """Rate-limited progress lines, for logs.

    One at most every half minute and every hundredth, and one at the end.
    """

    def __init__(
        self,
        total: int,
        initial: int,
        desc: str,
        unit: str,
        file: TextIO,
        patience: float,
    ):
        self._total, self._done = total, initial
        self._desc, self._unit, self._file = desc, unit, file
        self._postfix = ""
        self._start = self._told_at = time.monotonic()
        self._told: int | None = None
        self._next = initial + total / 100
        self._patience = patience

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        self._postfix = "".join(f", {name}={value}" for name, value in values.items())

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        wait = max(_SECONDS_BETWEEN_LINES, 0.0 if self._told else self._patience)
        if self._done >= self._next and now - self._told_at >= wait:
            self._tell(now)

    def close(self) -> None:
        """Tells where it ended, if that is not told yet."""
        now = time.monotonic()
        is_short = self._told is None and now - self._start < self._patience
        if self._told != self._done and not is_short:
            self._tell(now)

    def _tell(self, now: float) -> None:
        print(
            f"{self._desc}: {self._done}/{self._total} {self._unit}s, "
            f"{now - self._start:.0f} s{self._postfix}",
            file=self._file,
            flush=True,
        )
        self._told, self._told_at = self._done, now
        self._next = self._done + self._total / 100

"""Commands as functions: run in this process, on the runtime it has already."""

import contextlib
import importlib
import pathlib
import sys
import types
import warnings
from typing import NamedTuple

import pytest

from tff_perfedavg.experiments.files.run_paths import RunPaths
from tff_perfedavg.experiments.settings import command

ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def warnings_printed():
    """Prints warnings to standard error, as a process of its own does."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


class TrainedRun(NamedTuple):
    """A run, and the file that was exported of it."""

    paths: RunPaths
    exported: pathlib.Path


class Commands:
    """Runs commands of scripts/ and examples of docs/ in this process."""

    def __init__(self, runtime):
        """Runs them on a runtime, in place of those they would start."""
        self._runtime = runtime

    def run(self, script, *arguments):
        """Runs a command as `scripts/SCRIPT ARGUMENTS` does; its exit code."""
        module = importlib.import_module(f"scripts.{script.removesuffix('.py')}")
        argv = [str(ROOT / "scripts" / script), *map(str, arguments)]
        with self._shared_runtime(), warnings_printed():
            return command.execute(argv, module.main, module.define)

    def run_text(self, text):
        """Runs a text as `python -c TEXT` does."""
        main = types.ModuleType("__main__")
        with self._shared_runtime():
            exec(compile(text, "<text>", "exec"), main.__dict__)

    @contextlib.contextmanager
    def _shared_runtime(self):
        from tff_perfedavg.runtime import local_runtime

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local_runtime, "LocalRuntime", lambda: self._runtime)
            yield

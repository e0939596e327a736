"""What runs build and prepare, made once for all tests of a session."""

import contextlib
import dataclasses
import importlib
import pkgutil
import sys

import pytest


@contextlib.contextmanager
def shared(prepared, made):
    """Lets runs share prepared data sets and the learning processes on them.

    A learning process has no state of its own. Those of a user's own model, store or
    initial weights, which may change under a test's hands, are built anew.

    Args:
      prepared: directory of the prepared data sets.
      made: what was built so far, by what decides it.
    """
    from tff_perfedavg import experiments
    from tff_perfedavg.experiments.assemble import build, population

    # All of them, or one that is imported later would keep what is lent here.
    for module in pkgutil.walk_packages(
        experiments.__path__, "tff_perfedavg.experiments."
    ):
        importlib.import_module(module.name)
    build_process, path_of = build.build_process, population.population_path

    def shared_process(experiment, model, client_data):
        own = experiment.data.store or experiment.has_own_model or experiment.initial
        if own:
            return build_process(experiment, model, client_data)
        key = dataclasses.replace(experiment, total_rounds=1)
        if key not in made:
            made[key] = build_process(experiment, model, client_data)
        return made[key]

    def shared_path(experiment, root):
        return path_of(experiment, root if experiment.data.store else prepared)

    with pytest.MonkeyPatch.context() as patch:
        replace_everywhere(patch, build_process, shared_process)
        replace_everywhere(patch, path_of, shared_path)
        yield


def replace_everywhere(patch, function, other):
    """Has every module of the package that imported a function see another."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("tff_perfedavg."):
            for attribute, value in [*vars(module).items()]:
                if value is function:
                    patch.setattr(module, attribute, other)

"""What runs build and prepare, made once for all tests of a session."""

import contextlib
import functools
import importlib
import inspect
import pkgutil
import sys

import pytest


@contextlib.contextmanager
def shared(prepared, made):
    """Lets runs share prepared data sets and the computations on them.

    Neither a learning process nor an evaluation has a state of its own. Those of a
    user's own model, store or initial weights, which may change under a test's hands,
    are built anew.

    Args:
      prepared: directory of the prepared data sets.
      made: what was built so far, by what decides it.
    """
    from tff_perfedavg import experiments
    from tff_perfedavg.experiments.assemble import build, population
    from tff_perfedavg.federated import local_training, personalization_eval

    # All of them, or one that is imported later would keep what is lent here.
    for module in pkgutil.walk_packages(
        experiments.__path__, "tff_perfedavg.experiments."
    ):
        importlib.import_module(module.name)
    build_model, build_process = build.build_model, build.build_process
    path_of = population.population_path

    def once(key, function, *arguments, **named):
        # With its arguments, or others may take their places in memory.
        if key not in made:
            made[key] = function(*arguments, **named), arguments, named
        return made[key][0]

    def shared_path(experiment, root):
        return path_of(experiment, root if experiment.data.store else prepared)

    def shared_process(experiment, model, client_data):
        own = experiment.data.store or experiment.has_own_model or experiment.initial
        if own:
            return build_process(experiment, model, client_data)
        # What it is built from; a fleet decides who reports, not what is done.
        key = (
            *(experiment.data, experiment.model, experiment.local, experiment.layout),
            *(experiment.aggregation, experiment.server, experiment.base_random_seed),
            experiment.cohorts.clients_per_round,
            experiment.fleet_of_run.late_reports,
        )
        return once(key, build_process, experiment, model, client_data)

    def shared_model(experiment, store):
        if experiment.has_own_model:
            return build_model(experiment, store)
        shapes = (store.input_shape, store.label_shape, store.description.num_classes)
        key = (experiment.model, *shapes)
        return once(key, build_model, experiment, store)

    def sharing(function):
        """A builder of evaluations that builds each once."""
        signature = inspect.signature(function)

        @functools.wraps(function)
        def build_once(*arguments, **named):
            given = dict(signature.bind(*arguments, **named).arguments)
            model, client_data = given.pop("model"), given.pop("client_data", None)
            store = getattr(client_data, "_store", None)
            if store is None or prepared not in store.path.parents:
                return function(*arguments, **named)
            form = {n: v for n, v in vars(client_data).items() if n[0] != "_"}
            key = (
                function,
                id(model),
                store.path,
                type(client_data),
                repr([form, given]),
            )
            return once(key, function, *arguments, **named)

        return build_once

    evaluations = (
        personalization_eval.build_personalization_eval,
        local_training.build_local_training_eval,
    )
    with pytest.MonkeyPatch.context() as patch:
        replace_everywhere(patch, build_process, shared_process)
        replace_everywhere(patch, build_model, shared_model)
        replace_everywhere(patch, path_of, shared_path)
        for function in evaluations:
            replace_everywhere(patch, function, sharing(function))
        yield


def replace_everywhere(patch, function, other):
    """Has every module of the package that imported a function see another."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("tff_perfedavg."):
            for attribute, value in [*vars(module).items()]:
                if value is function:
                    patch.setattr(module, attribute, other)

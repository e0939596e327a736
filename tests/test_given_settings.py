"""Settings given for an algorithm that does not take them are refused, not ignored."""

import dataclasses
import re

import pytest
from absl import flags

from tff_perfedavg import errors
from tff_perfedavg.algorithms.registry import LocalSettings, methods
from tff_perfedavg.data.config import DATASETS, DataConfig
from tff_perfedavg.experiments.settings import common_flags, experiment_flags
from tff_perfedavg.experiments.settings.experiment import Experiment
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.moves import ALL, BODY, HEAD


def check(*arguments, names=None, axes=()):
    """Checks a command's flags, of one run or of the methods of a grid."""
    flag_values = flags.FlagValues()
    experiment_flags.define(flag_values)
    flag_values(["command", *arguments])
    base = experiment_flags.experiment(flag_values).local
    changes = [methods()[name] for name in names or ()] or [{}]
    runs = [dataclasses.replace(base, **settings) for settings in changes]
    experiment_flags.check_given(flag_values, runs, axes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--algorithm=fed_avg", "--variant=exact"],
            "variant is exact, but fed_avg has no such setting; leave it out, or "
            "choose algorithm per_fed_avg or meta_sgd or anil or boil",
        ),
        (["--algorithm=fed_prox", "--variant=first_order"], "but fed_prox has no such"),
        (["--algorithm=fed_avg", "--hessian_batch=own"], "but fed_avg has no such"),
        (["--proximal_pull=0.1"], "per_fed_avg has no .* choose algorithm fed_prox"),
        (
            ["--variant=first_order", "--hessian_batch=support"],
            "hessian_batch is support, but variant first_order takes no Hessian-vector "
            "product; leave it out, or choose variant exact or hessian_free",
        ),
        (
            ["--algorithm=anil", "--variant=first_order", "--hessian_batch=own"],
            "variant first_order takes no",
        ),
    ],
)
def test_what_an_algorithm_does_not_take_is_refused(arguments, message):
    with pytest.raises(errors.ConfigError, match=message):
        check(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"partition": "iid", "classes_per_user": 3},
            r"classes_per_user is 3, but partition iid has no such setting \(k_classes "
            r"have\); leave it out\.",
        ),
        ({"partition": "dirichlet", "a": 4}, r"\(paper and paper_diff_hetero have\)"),
        (
            {"partition": "k_classes", "concentration": 0.1},
            r"\(dirichlet and quantity_skew have\)",
        ),
        ({"partition": "iid", "min_rows": 9}, "has no such setting; leave it out"),
        ({"dataset": "synthetic", "min_rows": 9}, "of synthetic no user is left out"),
        (
            {"dataset": "uci_har", "num_users": 9},
            "num_users is 9, but uci_har has the users that there are",
        ),
        ({"image_size": 64}, "image_size is 64, but features is raw"),
    ],
)
def test_what_a_partition_does_not_go_by_is_refused(settings, message):
    with pytest.raises(errors.ConfigError, match=message):
        experiment_flags.check_experiments([Experiment(**settings)])


@pytest.mark.parametrize("dataset", DATASETS)
def test_what_is_refused_can_be_had_where_it_says_so(dataset):
    for name, reason in DataConfig.of(dataset).ignored.items():
        for partition in re.findall(r"\((.*) have\)", reason):
            for taker in partition.split(" and "):
                other = DataConfig.of(
                    dataset, partition=taker, own_labels=0, num_users=8, num_new_users=2
                )
                assert name not in other.ignored


def test_of_a_grid_one_partition_that_goes_by_a_setting_is_enough():
    settings = {"concentration": 0.5}
    partitions = [Experiment(partition=p, **settings) for p in ("iid", "dirichlet")]
    experiment_flags.check_experiments(partitions)
    with pytest.raises(errors.ConfigError, match=r"concentration is 0\.5, but"):
        experiment_flags.check_experiments(partitions[:1])
    experiment_flags.check_experiments([Experiment()])


@pytest.mark.parametrize("command", ["train.py", "sweep.py", "advise.py"])
def test_commands_refuse_what_a_partition_does_not_go_by(run, tmp_path, command):
    words = ["--partition=iid", "--classes_per_user=3", f"--root_output_dir={tmp_path}"]
    if command == "train.py":
        words.append("--experiment_name=mine")
    if command == "sweep.py":
        words.append("--grid=method=fed_avg")
    answer = run(command, *words)
    assert answer.returncode == 1
    assert "classes_per_user is 3, but partition iid has no such" in answer.stderr
    assert [*tmp_path.rglob("*")] == []


def test_a_rehearsal_of_a_grid_refuses_no_more_than_the_study(run, tmp_path):
    answer = run(
        "sweep.py",
        "--rehearse",
        "--model=logistic_regression",
        "--grid=partition=iid,dirichlet",
        "--grid=method=fed_avg",
        "--concentration=0.5",
        "--num_users=8",
        "--num_new_users=2",
        "--clients_per_round=2",
        "--nobaselines",
        f"--root_output_dir={tmp_path}",
    )
    assert answer.returncode == 0, answer.stderr


def test_of_users_that_are_found_any_number_may_be_new():
    assert DataConfig.of("mnist_by_writer", num_new_users=60).num_new_users == 60
    with pytest.raises(errors.ConfigError, match="num_new_users is 60 of 26 users"):
        DataConfig.of("digits", num_new_users=60)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--evaluation_fraction=0.5", "but partition paper goes by evaluation_a"),
        ("--synthetic_alpha=2", "synthetic_alpha is 2.0, but dataset is digits"),
    ],
)
def test_a_store_is_not_made_by_what_its_partition_ignores(
    run, tmp_path, flag, message
):
    path = tmp_path / "store"
    answer = run("prepare_data.py", "--dataset=digits", flag, f"--output_dir={path}")
    assert answer.returncode == 1
    assert message in answer.stderr
    assert not path.exists()


def test_what_an_algorithm_takes_is_not_refused():
    check("--variant=hessian_free", "--hessian_batch=support")
    check("--algorithm=boil", "--variant=first_order", "--head_tensors=2")
    check("--algorithm=fed_avg", "--inner_learning_rate=0.1")


def test_a_setting_of_a_grid_belongs_to_the_methods_that_take_it():
    support = "--hessian_batch=support"
    check(support, names=["fed_avg", "first_order", "exact"])
    check("--variant=first_order", names=["fed_avg", "meta_sgd"])
    check(names=["fed_avg", "exact"], axes=["method", "hessian_batch"])
    with pytest.raises(
        errors.ConfigError, match=r"but fed_avg .*; variant first_order"
    ):
        check(support, names=["fed_avg", "first_order"])
    with pytest.raises(errors.ConfigError, match="hessian_batch is in the grid, but"):
        check(names=["fed_avg"], axes=["method", "hessian_batch"])
    with pytest.raises(errors.ConfigError, match=r"variant is first_order, but .* ex"):
        check("--variant=first_order", names=["fed_avg", "exact"])


def test_a_run_that_was_given_what_does_nothing_is_the_same_run():
    plain = Experiment(algorithm="fed_avg")
    assert not plain.differences(plain.replace(variant="first_order"))
    first_order = Experiment(variant="first_order")
    assert not first_order.differences(first_order.replace(hessian_batch="support"))
    assert "variant" in Experiment().differences(first_order)
    exact = Experiment(hessian_batch="own")
    assert "hessian_batch" in exact.differences(exact.replace(hessian_batch="support"))
    assert "variant" in plain.differences(first_order)


def test_a_pull_that_the_only_step_cannot_feel_is_told():
    (told,) = LocalSettings(options={"inner_pull": 0.5}).config.remarks
    assert told.startswith("inner_pull is 0.5, but inner_steps is 1")
    several = LocalSettings(options={"inner_pull": 0.5, "inner_steps": 2})
    assert not several.config.remarks
    assert not LocalSettings().config.remarks


def test_a_heads_size_is_refused_where_all_weights_move():
    whole, head = AdaptationConfig(0.1), AdaptationConfig(0.1, moves=HEAD)
    size = {"head_tensors": 4}
    for changes, trained in ((size, [whole]), ({**size, "moves": ALL}, [head])):
        with pytest.raises(
            errors.ConfigError,
            match=r"adaptation_head_tensors is 4, but all .* move; .* head or body",
        ):
            common_flags.check_head_moves(changes, trained)
    common_flags.check_head_moves(size, [whole, head])
    common_flags.check_head_moves({**size, "moves": BODY}, [whole])
    common_flags.check_head_moves({}, [whole])

"""How results say which adaptation they are of."""

import pathlib

import pandas as pd
import pytest

from tff_perfedavg import errors
from tff_perfedavg.experiments.evaluation.measured_adaptation import (
    MeasuredAdaptation,
    differences,
    sentences,
)
from tff_perfedavg.optimization.config import AdaptationConfig
from tff_perfedavg.optimization.learned_rates import LearnedRates

PATH = pathlib.Path("per_user.csv")
PLAIN = AdaptationConfig(0.03, 5)
HEAD = AdaptationConfig(0.1, 1, batch_size=4, num_rows=6, moves="head", pull=0.5)
BODY = AdaptationConfig(0.1, 5, moves="body", head_tensors=3, learned=LearnedRates())


def of(config, seed=0):
    return MeasuredAdaptation.of(config, seed)


@pytest.mark.parametrize(
    ("config", "seed", "sentence"),
    [
        (PLAIN, 0, "adapt all weights in 5 steps at rate 0.03"),
        (
            HEAD,
            7,
            "adapt the last 2 weight tensors in 1 step at rate 0.1, pulled back by "
            "0.5, on 4 rows a step, of 6 rows each at most (seed 7)",
        ),
        (
            BODY,
            0,
            "adapt all but the last 3 weight tensors in 5 steps at learned rates times "
            "0.1",
        ),
        (AdaptationConfig(0.1, 0), 0, "do not adapt"),
    ],
)
def test_a_column_tells_it_and_a_sentence_says_it(config, seed, sentence):
    measured = of(config, seed)
    read = MeasuredAdaptation.read(
        pd.DataFrame({"adaptation": [str(measured)] * 2}), PATH
    )
    assert read == measured
    assert read.sentence == sentence
    assert sentences({"a": read, "b": read}) == [f"Users {sentence}."]
    # Another evaluation like it, of a run that was trained for something else.
    again = AdaptationConfig(**{**read.changes, "learned": config.learned})
    assert of(again, read.seed) == read


def test_files_that_do_not_tell_are_read_and_others_refused():
    unknown = MeasuredAdaptation.read(pd.DataFrame({"loss": [1.0]}), PATH)
    assert not unknown.is_known
    assert "earlier version" in unknown.sentence
    for texts in (["num_steps=1", "num_steps=2"], ["nothing"], ["depth=3"], [None]):
        with pytest.raises(errors.CheckpointError, match=r"^per_user\.csv has .*again"):
            MeasuredAdaptation.read(pd.DataFrame({"adaptation": texts}), PATH)


def test_runs_may_go_by_what_they_were_trained_for_and_by_nothing_else():
    faster = AdaptationConfig(0.1, 5)
    learned = AdaptationConfig(0.1, 5, learned=LearnedRates())
    own = [PLAIN, BODY]
    assert differences([of(PLAIN), of(BODY)], own) == []
    other = AdaptationConfig(0.2, 5)
    assert differences([of(PLAIN), of(other)], [PLAIN, other]) == []
    # One at a rate that is not its own, then both.
    assert differences([of(faster), of(other)], [PLAIN, other]) == ["rate"]
    assert differences([of(PLAIN), of(learned)], [PLAIN, PLAIN]) == [
        "rate",
        "learned rates",
    ]
    assert differences([of(faster), of(faster)], own) == []
    assert differences([of(PLAIN), of(PLAIN, 1)], [PLAIN] * 2) == ["seed"]
    few = AdaptationConfig(0.03, 5, num_rows=2)
    assert differences([of(PLAIN), of(few)], [PLAIN, few]) == ["rows of a user"]
    unknown = MeasuredAdaptation({})
    assert differences([unknown, unknown], own) == []
    assert differences([unknown, of(BODY)], own) == ["version"]
    said = sentences({"a": of(PLAIN), "b": of(faster), "c": of(PLAIN)})
    assert said == [
        "a, c: users adapt all weights in 5 steps at rate 0.03.",
        "b: users adapt all weights in 5 steps at rate 0.1.",
    ]

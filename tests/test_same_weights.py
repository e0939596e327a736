"""Runs end with the weights with which they ended when the files were written."""

import json
import pathlib

import numpy as np
import pytest

from tests import weights
from tests.needs import needs_data

EXPECTED = json.loads((pathlib.Path(__file__).parent / "data/weights.json").read_text())
FROM_FILES = ("mnist", "uci_har")
# Every method in one form, every form by some.
QUICK = [
    f"digits/{method}/{weights.FORMS[i % len(weights.FORMS)]}"
    for i, method in enumerate(weights.METHODS)
]
LONG = [key for key in weights.keys(weights.DATASETS) if key not in QUICK]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("same")


def check(key, root):
    found, expected = weights.train_short(key, root), EXPECTED["runs"][key]
    # To the bit on the kind of processor that wrote the file; others round otherwise.
    if weights.processor() == EXPECTED["processor"]:
        assert found == expected
    assert np.isclose(found["sum"], expected["sum"], rtol=1e-4, atol=1e-3)
    assert np.isclose(found["norm"], expected["norm"], rtol=1e-5)


@pytest.mark.parametrize("key", QUICK)
def test_digits_end_with_the_same_weights(tff, root, key):
    check(key, root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=needs_data if key.startswith(FROM_FILES) else ())
        for key in LONG
    ],
)
def test_the_others_end_with_the_same_weights(tff, root, key):
    check(key, root)

"""Every study in small gives the table that is committed."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from tests.needs import needs_data, slow_but

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS, TABLES = ROOT / "scripts/configs", ROOT / "docs/results/rehearsals"
# What is left to say on the command line.
REST = {
    "fair_choice": ["--dataset=mnist", "--partition=paper"],
    "fleet_har": ["--grid=method=fed_avg,exact"],
    "fleet_mnist": ["--grid=method=fed_avg,exact"],
    "own_labels_omniglot_choice": [
        "--grid=method=fed_avg,exact",
        "--inner_learning_rate=0.1",
        "--outer_learning_rate=0.3",
    ],
}
# Another processor rounds otherwise, and a row or two may change sides, or a choice
# between rates that are level.
FAR = 0.05


def is_study(flagfile):
    return "--grid=" in flagfile.read_text() or flagfile.stem in REST


def needs_download(flagfile):
    """A pretrained network's weights, which nobody has by a checkout."""
    return "--features=" in flagfile.read_text()


STUDIES = [
    path.stem
    for path in sorted(CONFIGS.glob("*.flags"))
    if is_study(path) and not needs_download(path)
]


def test_every_study_has_a_table_of_its_rehearsal():
    assert [path.stem for path in sorted(TABLES.glob("*.csv"))] == STUDIES
    assert len(STUDIES) > 15


@needs_data
@pytest.mark.parametrize("study", slow_but(["deployed_steps_digits"], STUDIES))
def test_a_study_in_small_gives_the_committed_table(study, run, tmp_path):
    flags = [f"--flagfile={CONFIGS}/{study}.flags", *REST.get(study, [])]
    answer = run("sweep.py", *flags, "--rehearse", f"--root_output_dir={tmp_path}")
    assert answer.returncode == 0, answer.stderr
    found = pd.read_csv(tmp_path / "rehearsal/sweep.table.csv")
    committed = pd.read_csv(TABLES / f"{study}.csv")
    assert [*found] == [*committed]
    said = [name for name in found if not pd.api.types.is_float_dtype(found[name])]
    pd.testing.assert_frame_equal(found[said], committed[said])
    # Accuracy, or the loss of tasks that have none.
    quantity = found.columns[found.columns.get_loc("over_seeds") - 1]
    np.testing.assert_allclose(found[quantity], committed[quantity], atol=FAR, rtol=FAR)

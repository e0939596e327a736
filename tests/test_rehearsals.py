"""Every study in small gives the table that is committed."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from tests.flag_files import CONFIGS, FLAG_FILES, LEFT_TO_SAY, flags_of
from tests.needs import needs_data, slow_but

ROOT = pathlib.Path(__file__).parent.parent
TABLES = ROOT / "docs/results/rehearsals"
# Another processor rounds otherwise, and a row or two may change sides, or a choice
# between rates that are level.
FAR = 0.05


def is_study(flagfile):
    return "--grid=" in flagfile.read_text() or flagfile.stem in LEFT_TO_SAY


def needs_download(flagfile):
    """A pretrained network's weights, which nobody has by a checkout."""
    return "--features=" in flagfile.read_text()


STUDIES = [
    path.stem for path in FLAG_FILES if is_study(path) and not needs_download(path)
]


def test_every_study_has_a_table_of_its_rehearsal():
    assert [path.stem for path in sorted(TABLES.glob("*.csv"))] == STUDIES
    assert len(STUDIES) > 15


@needs_data
@pytest.mark.parametrize("study", slow_but(["deployed_steps_digits"], STUDIES))
def test_a_study_in_small_gives_the_committed_table(study, run, tmp_path):
    flags = flags_of(CONFIGS / f"{study}.flags")
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

"""Flag files of studies, and what they leave to say on the command line."""

import pathlib

CONFIGS = pathlib.Path(__file__).parent.parent / "scripts/configs"
FLAG_FILES = sorted(CONFIGS.glob("*.flags"))
LEFT_TO_SAY = {
    "fair_choice": ["--dataset=mnist", "--partition=paper"],
    "fleet_har": ["--grid=method=fed_avg,exact"],
    "fleet_mnist": ["--grid=method=fed_avg,exact"],
    "own_labels_har_choice": [
        "--grid=method=fed_avg,exact",
        "--inner_learning_rate=0.1",
        "--outer_learning_rate=0.3",
    ],
    "own_labels_omniglot_choice": [
        "--grid=method=fed_avg,exact",
        "--inner_learning_rate=0.1",
        "--outer_learning_rate=0.3",
    ],
    "own_labels_writers_choice": [
        "--grid=method=fed_avg,exact",
        "--inner_learning_rate=0.1",
        "--outer_learning_rate=0.3",
    ],
}


def flags_of(path):
    """The words of a command that runs a flag file."""
    return [f"--flagfile={path}", *LEFT_TO_SAY.get(path.stem, [])]

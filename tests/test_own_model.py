"""A user's own model: what is said where its file does not do."""

import pytest

from tff_perfedavg import errors
from tff_perfedavg.experiments.assemble.own_model import build_own_model
from tff_perfedavg.experiments.settings.model_file import find_model_file
from tff_perfedavg.models.dense import mlp


def build(tmp_path, text, function="build"):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return build_own_model(f"{path}:{function}", (4,), 3, 0)


def test_a_function_that_returns_a_model_of_ours_is_taken(tmp_path):
    found = build(
        tmp_path,
        "from tff_perfedavg.models.dense import mlp\n"
        "def build(input_shape, num_outputs):\n"
        "    return mlp(input_shape, num_outputs, hidden=(7,))\n",
    )
    expected = mlp((4,), 3, hidden=(7,))
    assert [w.shape for w in found.init(0)] == [w.shape for w in expected.init(0)]


def test_a_file_that_is_not_there_is_told_before_anything_is_loaded():
    with pytest.raises(errors.ConfigError, match=r"'/nope\.py:f'.*no file /nope\.py; "):
        find_model_file("/nope.py:f")
    with pytest.raises(errors.ConfigError, match=r"no file /nope\.py"):
        build_own_model("/nope.py:f", (4,), 3, 0)


def test_a_function_that_is_not_there_is_told(tmp_path):
    with pytest.raises(errors.ConfigError, match=r"mine\.py has no make\(\)"):
        build(tmp_path, "build = None\n", "make")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "import nowhere_to_be_found\n",
            r"mine\.py could not be loaded: ModuleNotFoundError\. .*\n"
            r"Traceback.*\n  File \".*mine\.py\", line 1",
        ),
        ("def build(:\n", r"mine\.py could not be loaded: SyntaxError.*\n.*line 1"),
        (
            "def build(input_shape, num_outputs):\n    return 1 / 0\n",
            r"mine\.py failed in build\(\): ZeroDivisionError\. .*\n"
            r"Traceback.*\n  File \".*mine\.py\", line 2, in build",
        ),
        (
            "def build():\n    pass\n",
            r"mine\.py failed in build\(\): TypeError.*\n.*takes 0 positional",
        ),
    ],
)
def test_a_file_that_fails_is_told_with_its_own_traceback(tmp_path, text, told):
    with pytest.raises(errors.ModelError, match=told) as e:
        build(tmp_path, text)
    # Nothing of ours stands between.
    assert "own_model.py" not in str(e.value)
    assert "importlib" not in str(e.value)

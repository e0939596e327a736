"""What mends an error is told as the command line calls it."""

import pytest

from tff_perfedavg import errors
from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.experiments.settings.remedies import on_the_command_line


def test_arguments_are_told_as_the_flags_that_the_command_has():
    error = errors.WorkerError(
        "It ended.", remedies=("block_size", "batch_size", "address=0.0.0.0")
    )
    assert on_the_command_line(error, {"block_size", "address", "port"}) == (
        "\nOn the command line: --block_size, --address=0.0.0.0."
    )


def test_a_store_that_is_not_there_is_told_with_the_command_that_writes_one(tmp_path):
    with pytest.raises(errors.DataError, match="No user store at") as caught:
        UserStore.open(tmp_path)
    assert on_the_command_line(caught.value, ()) == (
        "\nOn the command line: scripts/prepare_data.py."
    )


@pytest.mark.parametrize("remedies", [(), ("batch_size",)])
def test_nothing_is_told_where_the_command_can_mend_nothing(remedies):
    error = errors.DataError("It is damaged.", remedies=remedies)
    assert on_the_command_line(error, {"port"}) == ""
    assert str(error) == "It is damaged."

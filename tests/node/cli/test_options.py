"""Which error ends with which exit code."""

import pytest

from dmi.errors import DmiError, JobFailedError, NoNodeError, NoQuorumError, NotYetError, UnknownJobError, UsageError
from dmi_node.cli.options import telling


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoNodeError, 3),
        (UsageError, 2),
        (NotYetError, 2),
        (UnknownJobError, 1),
        (NoQuorumError, 1),
        (JobFailedError, 1),
        (DmiError, 1),
    ],
)
def test_every_error_of_the_sdk_has_its_exit_code(
    error: type[DmiError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, telling():
        raise error("one line")
    assert caught.value.code == code
    assert capsys.readouterr().err == "one line\n"


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), telling():
        raise ZeroDivisionError

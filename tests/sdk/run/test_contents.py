"""Every row of the table of what a script may contain."""

import re

import pytest
import torch

from dmi.run.plain import PlainExchange
from tests.sdk.run.contents import DOCS, ROWS, Backwards, Row, outcome


def row_of(what: str) -> str:
    return next((line for line in DOCS.read_text().splitlines() if line.startswith(f"| {what} |")), "")


@pytest.mark.parametrize("row", ROWS, ids=[re.sub(r"\W+", "-", row.what).strip("-") for row in ROWS])
def test_it_is_as_the_table_says(row: Row) -> None:
    found = outcome(row.script, PlainExchange())
    if row.hint is not None:
        assert isinstance(found, str), "it is not refused"
        assert row.hint in found
        assert "\n" not in found
        assert f"refused: *{found.replace('|', ' ')}*" in row_of(row.what), "run python -m tests.sdk.run.contents"
        return
    assert not isinstance(found, str), found
    others = outcome(row.script, Backwards())
    assert not isinstance(others, str), others
    assert all(torch.equal(mine, other) for mine, other in zip(found, others, strict=True))
    assert "| works |" in row_of(row.what), "run python -m tests.sdk.run.contents"

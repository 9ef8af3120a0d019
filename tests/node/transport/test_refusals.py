"""What is refused is always counted, and logged once for each peer."""

import logging

import pytest

from dmi_node.transport import refusals as module
from dmi_node.transport.refusals import Refusals


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="dmi.refused")


def test_nothing_was_refused_yet() -> None:
    assert dict(Refusals().counts) == {}


def test_every_refusal_counts_by_its_reason() -> None:
    refusals = Refusals()
    for reason, who in [("stranger", "a"), ("stranger", "a"), ("stranger", "b"), ("malformed", "a")]:
        refusals.add(reason, who, "why")
    assert dict(refusals.counts) == {"stranger": 3, "malformed": 1}


def test_the_log_has_a_line_for_each_peer_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for line in ("at first", "again"):
        refusals.add("stranger", "a", line)
    refusals.add("stranger", "b", "another peer")
    refusals.add("malformed", "a", "another reason")
    assert [record.getMessage() for record in caplog.records] == [
        "refused a: at first (stranger)",
        "refused b: another peer (stranger)",
        "refused a: another reason (malformed)",
    ]


def test_a_line_is_text_and_no_format(caplog: pytest.LogCaptureFixture) -> None:
    Refusals().add("malformed", "100%s", "%d bytes {}")
    assert [record.getMessage() for record in caplog.records] == ["refused 100%s: %d bytes {} (malformed)"]


def test_who_was_logged_is_remembered_up_to_a_bound(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who makes a new key for each attempt fills no memory; the one longest ago is logged again."""
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    refusals = Refusals()
    for who in ("a", "b", "c", "d"):
        refusals.add("stranger", who, "why")
    assert list(refusals._logged) == [("stranger", who) for who in ("b", "c", "d")]
    caplog.clear()
    for who in ("d", "c", "b", "a"):
        refusals.add("stranger", who, "why")
    assert [record.getMessage() for record in caplog.records] == ["refused a: why (stranger)"]
    assert refusals.counts["stranger"] == 8

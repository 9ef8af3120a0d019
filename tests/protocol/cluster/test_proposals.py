"""What was asked is answered once, whatever happens."""

from dmi_protocol import limits
from dmi_protocol.cluster.command import Cancel
from dmi_protocol.cluster.proposals import RETRY_MS, Proposals
from dmi_protocol.cluster.state import ClusterState, Outcome
from dmi_protocol.effects import Answer
from dmi_protocol.identity import JobId, NodeId, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.reasons import LimitReached, NoQuorum, TimedOut

A, B = NodeId("a" * 16), NodeId("b" * 16)
ASK = Cancel(RequestId("r"), JobId("x"))


def test_it_is_given_again_after_a_while_and_at_once_to_another_leader() -> None:
    proposals = Proposals()
    proposals.ask(Instant(0), ASK, 10_000)
    assert proposals.due(Instant(0), None, 1) == [], "nobody leads"
    assert proposals.due(Instant(1), A, 1) == [ASK]
    assert proposals.due(Instant(2), A, 1) == []
    assert proposals.due(Instant(3), B, 2) == [ASK]
    assert proposals.due(Instant(3 + RETRY_MS), B, 2) == [ASK]


def test_the_answer_is_what_the_state_shows() -> None:
    proposals, state = Proposals(), ClusterState("mesh")
    proposals.ask(Instant(0), ASK, 10_000)
    assert proposals.settle(Instant(1), state, None) == []
    state.requests[ASK.request] = Outcome("done")
    assert proposals.settle(Instant(2), state, None) == [Answer(ASK.request, "done")]
    assert proposals.settle(Instant(3), state, None) == []
    assert proposals.deadline() is None


def test_patience_ends_with_the_reason() -> None:
    proposals = Proposals()
    proposals.ask(Instant(0), ASK, 700)
    proposals.ask(Instant(0), Cancel(RequestId("other"), JobId("x")), 900)
    why = NoQuorum(("a",), ("b", "c"))
    assert proposals.settle(Instant(699), None, why) == []
    assert proposals.settle(Instant(700), None, why) == [Answer(ASK.request, "", why)]
    assert proposals.settle(Instant(900), None, None) == [Answer(RequestId("other"), "", TimedOut(900))]


def test_a_fact_is_told_until_it_is_known_and_nobody_is_answered() -> None:
    proposals, state = Proposals(), ClusterState("mesh")
    proposals.tell(Instant(0), ASK)
    proposals.tell(Instant(5), ASK)
    assert len(proposals.pending) == 1
    assert proposals.settle(Instant(10**9), state, None) == []
    assert proposals.due(Instant(10**9), A, 1) == [ASK]
    state.requests[ASK.request] = Outcome()
    assert proposals.settle(Instant(10**9), state, None) == []
    assert len(proposals.pending) == 0


def test_what_no_log_takes_is_refused_at_once_and_given_to_nobody() -> None:
    proposals = Proposals()
    proposals.ask(Instant(0), Cancel(RequestId("r"), JobId("x" * limits.COMMAND_BYTES)), 10_000)
    assert proposals.deadline() == 0
    assert proposals.due(Instant(0), A, 1) == []
    (answer,) = proposals.settle(Instant(0), None, None)
    assert answer.refusal == LimitReached("bytes in a command", limits.COMMAND_BYTES)
    assert len(proposals.pending) == 0

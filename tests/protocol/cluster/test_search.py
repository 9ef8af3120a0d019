"""Who has lost its coordinator asks the others, in turn and not too often."""

from dmi_protocol.cluster.search import PATIENCE_MS, Search, answer
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.effects import Send
from dmi_protocol.identity import NodeId, PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages.control import Coordinated, Introduced, Seeking

ME, A, B = (NodeId(letter * 16) for letter in "0ab")


def test_an_election_is_waited_for_and_then_everybody_is_asked_in_turn() -> None:
    search = Search()
    asked: list[Send] = []
    for now in range(4 * PATIENCE_MS + 1):
        asked += search.look(Instant(now), is_lost=True, members={A, B})
    assert {send.to for send in asked} == {A, B}
    assert asked == [Send(send.to, Seeking()) for send in asked]
    assert len(asked) == 4
    assert search.deadline() == 5 * PATIENCE_MS


def test_whoever_hears_its_coordinator_asks_nobody() -> None:
    search = Search()
    search.look(Instant(0), is_lost=True, members={A})
    assert search.look(Instant(1), is_lost=False, members={A}) == []
    assert search.deadline() is None
    assert search.look(Instant(PATIENCE_MS), is_lost=True, members={A}) == [], "the patience begins anew"
    assert search.look(Instant(3 * PATIENCE_MS), is_lost=True, members=frozenset()) == []


def test_the_answer_names_the_coordinator_as_the_state_knows_it() -> None:
    state = ClusterState("mesh")
    state.members[B] = MemberRecord(B, "b", "b:1", PublicKey("k" * 40), witness=False)
    state.applied = 7
    assert answer(A, state, B) == [Send(A, Coordinated(Introduced(B, "b", "b:1", PublicKey("k" * 40)), 7))]
    assert answer(A, state, None) == answer(A, None, B) == answer(A, state, ME) == []

"""A node that is a member no more finds out, and nobody else takes itself for one."""

from dmi_protocol.cluster.command import Remove
from dmi_protocol.cluster.expulsion import PATIENCE_MS, Expulsion
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.effects import Effect, Redial, Retire
from dmi_protocol.events import Asked, Connected, Event, Received, TurnedAway
from dmi_protocol.identity import NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant, after
from dmi_protocol.messages.control import Expelled, Introduced, Leaving
from dmi_protocol.reasons import WasExpelled, WasTurnedAway

ME, A, B, C = (NodeId(letter * 16) for letter in "mabc")


def state(*nodes: NodeId, applied: int = 9) -> ClusterState:
    members = {n: MemberRecord(n, n[0], "h:1", PublicKey(n), witness=False) for n in nodes}
    return ClusterState("mesh", members, applied=applied)


class Story:
    """One node, and the others that it knows."""

    def __init__(self, *others: NodeId) -> None:
        self.now = Instant(0)
        self.expulsion = Expulsion(ME)
        self.state: ClusterState | None = state(ME, *others)
        self.others = {node: Introduced(node, node[0], "h:1", PublicKey(node)) for node in others}
        self.voters = frozenset({ME})
        self.is_led = False

    def happened(self, *events: Event) -> list[Effect]:
        for event in events:
            self.expulsion.happened(self.now, event, self.state)
        return self.look()

    def look(self) -> list[Effect]:
        return self.expulsion.look(self.now, self.state, self.others, self.voters, is_led=self.is_led)

    def wait(self) -> list[Effect]:
        """Until the next deadline."""
        deadline = self.expulsion.deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        return self.look()


def test_a_members_last_word_is_believed_when_it_is_news() -> None:
    story = Story(A)
    assert story.happened(Received(A, Expelled(9))) == []
    assert story.happened(Received(A, Expelled(10))) == [Retire(WasExpelled())]
    assert story.happened(Received(A, Expelled(10))) == [], "once"
    assert story.expulsion.deadline() is None


def test_one_whose_own_admission_is_still_under_way_believes_nobody_who_is_behind() -> None:
    story = Story(A)
    for behind in (None, state(A)):
        story.state = behind
        assert story.happened(Received(A, Expelled(10))) == []


def test_it_is_read_in_the_own_state() -> None:
    story = Story(A)
    assert story.happened() == []
    story.state = state(A)
    assert story.happened() == [Retire(WasExpelled())]


def test_a_newcomer_is_not_in_the_first_states_that_it_gets() -> None:
    story = Story(A)
    story.state = state(A)
    assert story.happened() == []


def test_who_leaves_by_its_own_wish_is_not_told() -> None:
    story = Story(A)
    remove = Remove(RequestId("leave"), ME)
    assert story.happened(Asked(remove.request, remove, 1_000)) == []
    story.state = state(A)
    assert story.happened() == []
    assert story.wait() == [Retire(WasExpelled())], "somebody else removes it, after nothing came of the wish"
    assert story.now == 1_000


def test_who_is_turned_away_by_most_is_a_member_no_more() -> None:
    story = Story(A, B, C)
    assert story.happened(TurnedAway(A)) == []
    assert story.expulsion.deadline() is None, "one of three"
    assert story.happened(TurnedAway(B)) == []
    assert story.wait() == [Retire(WasTurnedAway(("a", "b")))]
    assert story.now == PATIENCE_MS


def test_the_voters_of_our_log_are_enough() -> None:
    """Others that we know from an old snapshot may be gone."""
    story = Story(A, B, C)
    story.voters = frozenset({ME, A})
    story.happened(TurnedAway(A))
    assert story.wait() == [Retire(WasTurnedAway(("a",)))]


def test_who_hears_a_coordinator_is_a_member_whoever_turns_it_away() -> None:
    story = Story(A, B)
    story.happened(TurnedAway(A), TurnedAway(B))
    story.now = after(story.now, PATIENCE_MS - 1)
    story.is_led = True
    assert story.look() == []
    assert story.expulsion.deadline() is None
    story.is_led = False
    assert story.look() == []
    story.wait()
    assert story.now == 2 * PATIENCE_MS - 1, "it counts from the moment when it heard none"


def test_two_that_were_expelled_do_not_keep_each_other_in() -> None:
    """Simulation: each is a member to the other."""
    story = Story(A, B, C)
    story.voters = frozenset({A, B})
    story.happened(Connected(C), TurnedAway(A), TurnedAway(B))
    for _ in range(12):
        story.now = after(story.now, 1_000)
        if found := story.happened(Received(C, Leaving())):
            break
    assert found == [Retire(WasTurnedAway(("a", "b")))]


def test_who_lets_us_in_again_does_not_count() -> None:
    story = Story(A, B, C)
    story.happened(TurnedAway(A), TurnedAway(B), Connected(B))
    assert story.look() == []
    story.now = after(story.now, 2 * PATIENCE_MS)
    assert not any(isinstance(effect, Retire) for effect in story.look())


def test_strangers_do_not_count() -> None:
    story = Story(A)
    assert story.happened(TurnedAway(B), TurnedAway(C)) == []
    assert story.expulsion.deadline() is None


def test_a_silent_connection_is_dialled_anew_and_once() -> None:
    story = Story(A, B)
    story.happened(Connected(A), Connected(B))
    story.now = after(story.now, PATIENCE_MS - 1)
    assert story.happened(Received(A, Leaving())) == []
    assert story.wait() == [Redial(A), Redial(B)]
    assert story.now == 2 * PATIENCE_MS - 1
    assert story.expulsion.deadline() is None
    story.happened(TurnedAway(A), TurnedAway(B))
    assert story.wait() == [Retire(WasTurnedAway(("a", "b")))]

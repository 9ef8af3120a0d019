"""Whom a node speaks with."""

from msgspec.structs import replace

from dmi_protocol.cluster.directory import FAREWELL_MS, VOUCHED, WISH_MS, MemberDirectory
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.effects import AllowInvitations, Effect, Link, Unlink
from dmi_protocol.identity import NodeId, PublicKey, node_id
from dmi_protocol.instant import Instant
from dmi_protocol.messages.control import Introduced

ME, A, B = (NodeId(letter * 16) for letter in "mab")


def state(*nodes: NodeId, applied: int = 5) -> ClusterState:
    members = {n: MemberRecord(n, n[0], f"{n[0]}:1", PublicKey(n), witness=False) for n in nodes}
    return ClusterState("mesh", members, applied=applied)


def linked(effects: list[Effect]) -> list[NodeId]:
    return [effect.node for effect in effects if isinstance(effect, Link)]


def unlinked(effects: list[Effect]) -> list[NodeId]:
    return [effect.node for effect in effects if isinstance(effect, Unlink)]


def test_members_are_linked_once_and_again_at_a_new_address() -> None:
    directory, agreed = MemberDirectory(ME, (), 0), state(ME, A)
    assert linked(directory.meet(Instant(0), agreed)) == [A]
    assert directory.meet(Instant(1), agreed) == []
    agreed.members[A] = MemberRecord(A, "a", "a:2", PublicKey(A), witness=False)
    (link,) = directory.meet(Instant(2), agreed)
    assert isinstance(link, Link)
    assert link.address == "a:2"


def test_who_is_expelled_is_unlinked_at_once() -> None:
    directory = MemberDirectory(ME, (), 0)
    directory.meet(Instant(0), state(ME, A, B))
    assert unlinked(directory.meet(Instant(1), state(ME, B))) == [A]
    assert directory.linked == directory.members == {B}
    assert directory.deadline() is None


def test_who_wished_to_leave_still_gets_the_log_and_is_no_member() -> None:
    directory = MemberDirectory(ME, (), 0)
    directory.meet(Instant(0), state(ME, A, B))
    directory.wishes_to_leave(Instant(10), A)
    assert unlinked(directory.meet(Instant(20), state(ME, B))) == []
    assert directory.linked == {A, B}
    assert directory.members == {B}
    over = Instant(20 + FAREWELL_MS)
    assert directory.deadline() == over
    assert not directory.is_due(Instant(over - 1))
    assert directory.is_due(over)
    assert unlinked(directory.meet(over, state(ME, B))) == [A]
    assert directory.deadline() is None


def test_a_wish_that_nothing_came_of_is_forgotten() -> None:
    directory = MemberDirectory(ME, (), 0)
    directory.meet(Instant(0), state(ME, A))
    directory.wishes_to_leave(Instant(0), A)
    assert unlinked(directory.meet(Instant(WISH_MS), state(ME))) == [A]


def test_who_comes_back_during_its_farewell_is_a_member() -> None:
    directory = MemberDirectory(ME, (), 0)
    directory.meet(Instant(0), state(ME, A))
    directory.wishes_to_leave(Instant(0), A)
    directory.meet(Instant(1), state(ME))
    directory.meet(Instant(2), state(ME, A))
    assert directory.members == {A}
    assert directory.deadline() is None


def test_those_known_before_are_spoken_with_until_the_state_has_caught_up() -> None:
    directory = MemberDirectory(ME, [Introduced(A, "a", "a:1", PublicKey(A))], 5)
    assert linked(directory.meet(Instant(0), None)) == [A]
    assert unlinked(directory.meet(Instant(1), state(ME, B, applied=4))) == []
    assert directory.members == {A, B}
    assert unlinked(directory.meet(Instant(2), state(ME, B, applied=5))) == [A]


def introduced(name: str, address: str = "d:1") -> Introduced:
    key = PublicKey(name * 40)
    return Introduced(node_id(key), name, address, key)


def test_whom_a_member_vouches_for_is_one_until_the_state_knows_better() -> None:
    directory, d = MemberDirectory(ME, (), 0), introduced("d")
    directory.meet(Instant(0), state(ME, A, applied=3))
    directory.vouch(d, 6)
    assert linked(directory.meet(Instant(1), state(ME, A, applied=3))) == [d.node]
    assert directory.meet(Instant(2), state(ME, A, applied=5)) == []
    assert unlinked(directory.meet(Instant(3), state(ME, A, applied=6))) == [d.node]


def test_a_new_address_that_a_member_vouches_for_replaces_the_old_one() -> None:
    directory, agreed, moved = MemberDirectory(ME, (), 0), state(ME, applied=3), introduced("d", "d:2")
    agreed.members[moved.node] = MemberRecord(moved.node, "d", "d:1", moved.public_key, witness=False)
    directory.meet(Instant(0), agreed)
    directory.vouch(moved, 6)
    (link,) = directory.meet(Instant(1), agreed)
    assert isinstance(link, Link)
    assert link.address == "d:2"


def test_nobody_vouches_for_what_cannot_be_dialled_or_for_endlessly_many() -> None:
    directory, d = MemberDirectory(ME, (), 0), introduced("d")
    for nonsense in (replace(d, address="d"), replace(d, public_key=PublicKey("k")), replace(d, node=A)):
        directory.vouch(nonsense, 9)
    assert directory.meet(Instant(0), state(ME)) == []
    for letter in "abcdefghijkl":
        directory.vouch(introduced(letter), 9)
    assert len(linked(directory.meet(Instant(1), state(ME)))) == VOUCHED


def test_open_invitations_are_told_when_they_change() -> None:
    directory, agreed = MemberDirectory(ME, (), 0), state(ME)
    agreed.invitations[PublicKey("i")] = 9
    assert directory.meet(Instant(0), agreed) == [AllowInvitations((PublicKey("i"),))]
    assert directory.meet(Instant(1), agreed) == []
    agreed.invitations.clear()
    assert directory.meet(Instant(2), agreed) == [AllowInvitations(())]

"""What a follower makes of a leader's entries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.consensus.following import LARGEST, Pieces, Placed, is_sound, place
from dmi_protocol.consensus.log import Log
from dmi_protocol.messages.consensus import Append, ConsensusMessage, Entry, Install, Snapshot, Vote
from tests.protocol.consensus.cluster import entries, node


def append(previous: int, previous_term: int, *terms: int, term: int = 9, commit: int = 0) -> Append:
    return Append(term, previous, previous_term, entries(*terms, first=previous + 1), commit)


def yes(index: int, kept: tuple[Entry, ...] = ()) -> Placed:
    return Placed(matched=True, index=index, kept=kept)


def no(index: int) -> Placed:
    return Placed(matched=False, index=index)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (append(3, 2, 3), yes(4, entries(3, first=4))),
        (append(2, 1, 2), yes(3)),
        (append(2, 1), yes(2)),
        (append(1, 1, 1, 2, 3), yes(4, entries(3, first=4))),
        (append(1, 1, 3), yes(2, entries(3, first=2))),
        (append(7, 2), no(4)),
        (append(3, 3), no(3)),
    ],
)
def test_entries_are_placed(message: Append, expected: Placed) -> None:
    assert place(Log(None, entries(1, 1, 2)), 0, message) == expected


def test_an_empty_log_takes_everything() -> None:
    assert place(Log(None, []), 0, append(0, 0, 1, 1)) == yes(2, entries(1, 1))


def test_what_is_committed_is_not_looked_at_again() -> None:
    log = Log(Snapshot(2, 1, (node("a"),), b""), entries(1, 2, first=3))
    assert place(log, 3, append(0, 0, 1, 1, 1, 2, 5)) == yes(5, entries(5, first=5))
    assert place(log, 3, append(1, 1)) == yes(3)


def test_a_retry_is_never_before_what_is_committed() -> None:
    log = Log(None, entries(1, 1, 1, 1))
    assert place(log, 2, append(4, 3)) == no(3)


def growing(first: int) -> st.SearchStrategy[list[int]]:
    """Terms that never go back, every second one from ``first`` on."""
    steps = st.lists(st.sampled_from([0, 2]), max_size=8)
    return steps.map(lambda each: [first + sum(each[: i + 1]) for i in range(len(each))])


@given(st.integers(0, 4), growing(first=2), growing(first=3))
def test_a_leader_that_follows_the_hints_makes_any_log_its_own(same: int, theirs: list[int], ours: list[int]) -> None:
    """The logs share a beginning and no term after it (log matching). A refusal goes back by a term or to the log's end."""
    leader, log = entries(*[1] * same, *theirs), Log(None, entries(*[1] * same, *ours))
    next_index = len(leader) + 1
    refusals = 0
    while not (placed := probe(log, leader, next_index)).matched:
        assert placed.index < next_index
        next_index = placed.index
        refusals += 1
    assert refusals <= len(set(ours)) + 1
    if placed.kept:
        log.append(placed.kept)
    assert log.between(1, len(leader)) == leader
    log.check()


def probe(log: Log, leader: tuple[Entry, ...], next_index: int) -> Placed:
    previous = next_index - 1
    placed = place(log, 0, Append(99, previous, leader[previous - 1].term if previous else 0, leader[previous:], 0))
    assert placed is not None
    return placed


@pytest.mark.parametrize(
    "message",
    [
        Vote(-1, 1, 1),
        Vote(LARGEST, 1, 1),
        Append(3, -1, 1, (), 0),
        Append(3, 1, -1, (), 0),
        Append(3, 1, 4, (), 0),
        Append(3, 1, 1, entries(1, first=3), 0),
        Append(3, 1, 2, entries(1, first=2), 0),
        Append(3, 1, 1, entries(4, first=2), 0),
        Append(3, 1, 1, entries(2, first=2) * 2, 0),
        Install(3, 5, 1, (), 11, 10, b""),
        Install(3, 5, 1, (), -1, 10, b""),
        Install(3, 5, 1, (), 8, 10, b"123"),
        Install(3, 0, 1, (), 0, 10, b""),
        Install(3, 5, 4, (), 0, 10, b""),
    ],
)
def test_what_no_correct_node_says_is_not_sound(message: ConsensusMessage) -> None:
    assert not is_sound(message)


def test_what_correct_nodes_say_is_sound() -> None:
    assert is_sound(append(0, 0, 1, 1, 2))
    assert is_sound(append(4, 2))
    assert is_sound(Vote(3, 1, 1))
    assert is_sound(Install(3, 5, 3, (), 7, 10, b"123"))
    assert is_sound(Install(3, 5, 3, (), 0, 0, b""))


def pieces(state: bytes, size: int, term: int = 3) -> list[Install]:
    cuts = range(0, max(1, len(state)), size)
    return [Install(term, 5, 2, (node("a"),), at, len(state), state[at : at + size]) for at in cuts]


@given(st.binary(max_size=40), st.integers(1, 9))
def test_pieces_make_the_snapshot_whatever_is_repeated(state: bytes, size: int) -> None:
    arriving = Pieces()
    for piece in pieces(state, size):
        for again in (piece, *pieces(state, size)[: piece.offset // size], piece):
            have = arriving.add(again)
        assert have == piece.offset + len(piece.data)
    assert arriving.whole(piece) == Snapshot(5, 2, (node("a"),), state)


def test_a_piece_out_of_order_is_not_taken_and_another_leader_starts_over() -> None:
    arriving = Pieces()
    first, second, third = pieces(b"abcdef", 2)
    assert arriving.add(first) == 2
    assert arriving.add(third) == 2
    assert arriving.whole(third) is None
    assert arriving.add(second) == 4
    assert arriving.add(pieces(b"abcdef", 2, term=4)[0]) == 2

"""How a leader's idea of one follower moves."""

from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.consensus.progress import Progress
from dmi_protocol.instant import Instant


def progress(matched: int = 0, next_index: int = 10, *, streaming: bool = False) -> Progress:
    made = Progress(Instant(0), next_index)
    made.matched, made.is_streaming = matched, streaming
    return made


def test_an_acknowledgement_of_a_probe_starts_the_stream_right_after_it() -> None:
    follower = progress(next_index=10)
    follower.confirm(6)
    assert (follower.matched, follower.next_index, follower.is_streaming) == (6, 7, True)


def test_an_acknowledgement_in_a_stream_takes_nothing_back() -> None:
    follower = progress(4, 10, streaming=True)
    follower.confirm(6)
    assert (follower.matched, follower.next_index) == (6, 10)


def test_a_late_acknowledgement_changes_nothing() -> None:
    follower = progress(6, 10, streaming=True)
    follower.confirm(3)
    assert (follower.matched, follower.next_index) == (6, 10)


def test_a_refusal_goes_back_and_ends_the_stream() -> None:
    follower = progress(2, 10, streaming=True)
    assert follower.back_off(5)
    assert (follower.next_index, follower.is_streaming) == (5, False)


def test_a_refusal_that_is_older_than_what_we_know_is_ignored() -> None:
    follower = progress(4, 7)
    assert not follower.back_off(4)
    assert not follower.back_off(7)
    assert not follower.back_off(1 << 40)
    assert follower.next_index == 7


def test_what_is_not_acknowledged_by_the_next_heartbeat_ends_the_stream() -> None:
    behind, even = progress(5, 10, streaming=True), progress(9, 10, streaming=True)
    behind.doubt()
    even.doubt()
    assert (behind.is_streaming, even.is_streaming) == (False, True)


def test_a_piece_leaves_once_until_a_heartbeat_would_find_it_missing() -> None:
    follower = progress()
    follower.beats_every(500)
    assert follower.wants_piece(Instant(10), 0)
    assert not follower.wants_piece(Instant(509), 0)
    assert follower.wants_piece(Instant(509), 100)
    assert not follower.wants_piece(Instant(1_008), 100)
    assert follower.wants_piece(Instant(1_009), 100)


@given(st.lists(st.tuples(st.sampled_from(["confirm", "back_off", "doubt"]), st.integers(-5, 12)), max_size=30))
def test_the_next_index_is_always_after_what_matches_and_never_beyond_the_log(moves: list[tuple[str, int]]) -> None:
    follower, last = progress(next_index=11), 10
    for move, index in moves:
        before = follower.matched
        if move == "confirm":
            follower.confirm(min(index, last))
        elif move == "back_off":
            follower.back_off(index)
        else:
            follower.doubt()
        assert before <= follower.matched < follower.next_index <= last + 1

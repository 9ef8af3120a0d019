"""What a leader sends to whom, and when."""

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.consensus.leading import Leadership
from dmi_protocol.consensus.log import Log
from dmi_protocol.consensus.settings import RaftSettings
from dmi_protocol.effects import Send
from dmi_protocol.instant import Instant
from dmi_protocol.messages.consensus import Append, Appended, Install, Installed, Snapshot, TimeoutNow
from tests.protocol.consensus.cluster import entries, node

ME, A, B, LEARNER = (node(letter) for letter in "mabl")
TERM = 3
SETTINGS = RaftSettings(entries_per_message=4, window_entries=8)


def leads(log: Log, settings: RaftSettings = SETTINGS) -> Leadership:
    lead = Leadership(ME, TERM, log, settings, Instant(0))
    lead.follow(Instant(0), frozenset({ME, A, B}), [LEARNER])
    return lead


def log_of(count: int) -> Log:
    return Log(None, entries(*[TERM] * count))


def appends(sends: list[Send]) -> list[tuple[str, int, int, int]]:
    """To whom, after which entry, how many, and what is said to be committed."""
    return [
        (send.to, send.message.previous_index, len(send.message.entries), send.message.commit)
        for send in sends
        if isinstance(send.message, Append)
    ]


def yes(index: int) -> Appended:
    return Appended(TERM, matched=True, index=index)


def no(index: int) -> Appended:
    return Appended(TERM, matched=False, index=index)


def test_everybody_is_told_at_once_who_leads() -> None:
    lead = leads(log_of(2))
    assert {send.to for send in lead.announce(Instant(0), 0)} == {A, B, LEARNER}


def test_entries_stream_to_a_follower_whose_log_matches_up_to_the_window() -> None:
    log = log_of(2)
    lead = leads(log)
    assert lead.replicate(Instant(1), 0) == [], "nobody's log is known to match"
    assert lead.appended(Instant(1), A, yes(2), 0) == []
    log.append(entries(*[TERM] * 20, first=3))
    assert appends(lead.replicate(Instant(2), 0)) == [(A, 2, 4, 0)]
    assert appends(lead.replicate(Instant(3), 0)) == [(A, 6, 4, 0)], "on trust, before the first are acknowledged"
    assert lead.replicate(Instant(4), 0) == [], "the window is full"
    assert appends(lead.appended(Instant(5), A, yes(6), 0)) == [(A, 10, 4, 0)]


def test_a_follower_whose_log_differs_is_asked_further_back_until_it_matches() -> None:
    lead = leads(log_of(9))
    assert appends(lead.appended(Instant(1), A, no(6), 0)) == [(A, 5, 4, 0)]
    assert lead.appended(Instant(1), A, no(8), 0) == [], "an answer from before"
    assert appends(lead.appended(Instant(2), A, no(3), 0)) == [(A, 2, 4, 0)]
    assert appends(lead.appended(Instant(3), A, yes(6), 0)) == [(A, 6, 3, 0)]
    assert lead.matched() == {ME: 9, A: 6, B: 0, LEARNER: 0}


def test_who_acknowledges_after_the_commit_hears_of_it_at_once() -> None:
    lead = leads(log_of(2))
    assert appends(lead.appended(Instant(1), A, yes(2), 2)) == [(A, 2, 0, 2)]
    assert lead.appended(Instant(2), A, yes(2), 2) == [], "and once"


def test_an_answer_beyond_our_log_counts_no_more_than_it() -> None:
    lead = leads(log_of(2))
    lead.appended(Instant(1), A, yes(99), 0)
    assert lead.matched()[A] == 2


def test_voters_and_learners_have_their_own_heartbeats() -> None:
    lead = leads(log_of(1))
    assert lead.deadline() == SETTINGS.heartbeat_ms
    assert {send.to for send in lead.beat(Instant(SETTINGS.heartbeat_ms), 0)} == {A, B}
    assert {send.to for send in lead.beat(Instant(SETTINGS.learner_heartbeat_ms), 0)} == {A, B, LEARNER}
    assert lead.beat(Instant(SETTINGS.learner_heartbeat_ms + 1), 0) == []
    lead.hurry(LEARNER)
    assert [send.to for send in lead.beat(Instant(SETTINGS.learner_heartbeat_ms + 2), 0)] == [LEARNER]


def test_what_is_not_acknowledged_by_the_next_heartbeat_is_sent_again() -> None:
    log = log_of(1)
    lead = leads(log)
    lead.appended(Instant(1), A, yes(1), 0)
    log.append(entries(TERM, TERM, first=2))
    assert appends(lead.replicate(Instant(2), 0)) == [(A, 1, 2, 0)]
    assert (A, 3, 0, 0) in appends(lead.beat(Instant(600), 0)), "is it there?"
    assert appends(lead.appended(Instant(601), A, no(2), 0)) == [(A, 1, 2, 0)]


def test_a_quorum_is_whoever_spoke_within_an_election_timeout() -> None:
    lead = leads(log_of(1))
    late = Instant(SETTINGS.election_ms + 10)
    assert not lead.has_quorum(late)
    lead.appended(Instant(20), LEARNER, yes(1), 0)
    assert not lead.has_quorum(late), "a learner has no vote"
    lead.appended(Instant(20), B, no(1), 0)
    assert lead.has_quorum(late)
    assert not lead.has_quorum(Instant(SETTINGS.election_ms + 20))


def test_a_lost_piece_is_sent_again_though_news_of_commits_leave_no_time_for_heartbeats() -> None:
    log = Log(snapshot_of(512), entries(TERM, first=6))
    lead = leads(log)
    lead.appended(Instant(1), A, yes(4), 4)  # it has what was compacted meanwhile, and is streamed to
    pieces = 0
    for now in range(100, 2_000, 100):
        beats = lead.beat(Instant(now), 5)
        assert not any(send.to == A for send in beats), "it is told of a commit before a heartbeat is due"
        asked = [send for send in lead.tell_commit(Instant(now), 5) if send.to == A]
        assert [type(send.message) for send in asked] == [Install]
        pieces += len(lead.installed(Instant(now + 1), A, Installed(TERM, 5, 0), 5))
    assert 1 < pieces <= 2_000 // SETTINGS.heartbeat_ms + 1


def snapshot_of(size: int) -> Snapshot:
    return Snapshot(5, 2, (ME, A, B), bytes(range(256)) * (size // 256))


def test_a_log_that_is_too_far_behind_gets_the_snapshot_in_pieces() -> None:
    size = 2 * limits.CHUNK_BYTES + 512
    log = Log(snapshot_of(size), entries(TERM, first=6))
    lead = leads(log)
    (asks,) = lead.appended(Instant(1), A, no(2), 5)
    assert isinstance(asks.message, Install)
    assert (asks.message.data, asks.message.total) == (b"", size), "how much does it have?"
    received, offset = b"", 0
    while offset < size:
        (piece,) = lead.installed(Instant(2), A, Installed(TERM, 5, offset), 5)
        assert isinstance(piece.message, Install)
        assert lead.installed(Instant(2), A, Installed(TERM, 5, offset), 5) == [], "it is under way"
        received += piece.message.data
        offset = len(received)
    assert received == snapshot_of(size).state
    assert appends(lead.installed(Instant(3), A, Installed(TERM, 5, size), 5)) == [(A, 5, 1, 5)]
    assert lead.installed(Instant(4), A, Installed(TERM, 4, 0), 5) == [], "of an older snapshot"


def test_who_has_nearly_all_that_is_committed_is_abreast() -> None:
    log = log_of(9)
    lead = leads(log)
    lead.appended(Instant(1), LEARNER, yes(4), 9)
    assert lead.abreast == set()
    lead.appended(Instant(1), LEARNER, yes(5), 9)
    assert lead.abreast == {LEARNER}
    lead.follow(Instant(2), frozenset({ME, A, B}), [])
    assert lead.abreast == set()


def test_the_leadership_is_handed_over_to_who_has_everything_and_in_time() -> None:
    lead = leads(log_of(2))
    assert lead.transfer(Instant(0), A) == []
    lead.appended(Instant(1), A, yes(1), 0)
    assert lead.finish_transfer(Instant(1)) == []
    lead.appended(Instant(2), A, yes(2), 0)
    assert lead.finish_transfer(Instant(2)) == [Send(A, TimeoutNow(TERM))]
    assert lead.finish_transfer(Instant(3)) == [], "once"
    assert lead.most_complete() == A
    assert lead.transfer(Instant(4), B) == []
    lead.appended(Instant(5), B, yes(2), 0)
    assert lead.finish_transfer(Instant(4 + SETTINGS.election_ms)) == [], "too late"


def test_a_probe_carries_no_more_than_its_bytes_and_at_least_nothing() -> None:
    lead = leads(log_of(9), replace(SETTINGS, probe_bytes=1))
    assert appends(lead.appended(Instant(1), A, no(3), 0)) == [(A, 2, 0, 0)]


def test_strangers_are_not_counted() -> None:
    lead = leads(log_of(2))
    assert lead.appended(Instant(1), node("s"), yes(2), 0) == []
    assert lead.installed(Instant(1), node("s"), Installed(TERM, 5, 0), 0) == []
    assert node("s") not in lead.heard(Instant(1))

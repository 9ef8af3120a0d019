"""What DMI adds to Raft: the fast path after a broken connection, who may say that there is a quorum, sizes, restarts."""

from functools import partial

import msgpack
import pytest

from dmi_protocol import limits
from dmi_protocol.cluster.command import Cancel
from dmi_protocol.codec import open_envelope, seal
from dmi_protocol.consensus.output import Restore
from dmi_protocol.consensus.settings import RaftSettings, Restored
from dmi_protocol.effects import PersistEntries, PersistSnapshot, Send
from dmi_protocol.errors import LocalProtocolError
from dmi_protocol.events import Connected, Disconnected, Received, Stopping, Ticked
from dmi_protocol.identity import JobId, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.consensus import (
    Append,
    Appended,
    ConsensusMessage,
    Install,
    Installed,
    Noop,
    PreVote,
    PreVoted,
    Snapshot,
    TimeoutNow,
)
from tests.protocol.consensus.cluster import Cluster, command, entries, node, nodes

A, B, C, D = map(node, "abcd")


def leading(cluster: Cluster) -> set[str]:
    return {name for name, raft in cluster.rafts.items() if raft.is_leader}


def somebody_leads(cluster: Cluster) -> bool:
    return bool(leading(cluster))


# The fast path


def test_a_broken_connection_to_the_leader_starts_a_pre_vote_soon() -> None:
    waits = set()
    for seed in range(100):
        cluster = Cluster(seed=seed)
        cluster.elect("a")
        cluster.give("b", Disconnected(A))
        waits.add((cluster.rafts[B].deadline() or 0) - cluster.now)
    assert min(waits) >= 50
    assert max(waits) <= 200
    assert len(waits) > 20


def test_a_broken_connection_to_anybody_else_changes_nothing() -> None:
    cluster = Cluster()
    cluster.elect("a")
    before = cluster.rafts[B].deadline()
    cluster.give("b", Disconnected(C))
    assert cluster.rafts[B].deadline() == before
    assert cluster.rafts[B].has_quorum(cluster.now)


@pytest.mark.parametrize("size", [3, 5])
def test_a_killed_leader_is_replaced_within_a_second(size: int) -> None:
    times = []
    for seed in range(50):
        cluster = Cluster("abcde"[:size], seed=seed)
        cluster.elect("a")
        cluster.run(1_234)
        cluster.kill("a")
        times.append(cluster.until(partial(somebody_leads, cluster)))
    assert sorted(times)[25] < 250
    assert max(times) < 1_000


def test_who_saw_the_leader_go_grants_a_pre_vote_and_who_hears_it_refuses() -> None:
    cluster = Cluster()
    cluster.elect("a")
    ask = Received(C, PreVote(3, 2, 2))
    assert cluster.give("b", ask) == [Send(C, PreVoted(2, granted=False))]
    cluster.give("b", Disconnected(A))
    assert cluster.give("b", ask) == [Send(C, PreVoted(3, granted=True))]


def test_who_has_not_heard_the_leader_for_an_election_timeout_grants_a_pre_vote() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.now = Instant(cluster.now + cluster.settings.election_ms - 1)
    ask = Received(C, PreVote(3, 2, 2))
    assert Send(C, PreVoted(2, granted=False)) in cluster.rafts[B].step(cluster.now, ask)
    cluster.now = Instant(cluster.now + 1)
    assert Send(C, PreVoted(3, granted=True)) in cluster.rafts[B].step(cluster.now, ask)


def test_one_connection_that_breaks_while_the_leader_lives_elects_nobody() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.give("b", Disconnected(A))
    cluster.tick("b")
    cluster.run(5_000)
    assert (leading(cluster), cluster.rafts[A].term) == ({A}, 2)


def test_a_heartbeat_or_a_new_connection_makes_the_leader_heard_again() -> None:
    cluster = Cluster()
    cluster.elect("a")
    for heard in (Connected(A), Received(A, Append(2, 2, 2, (), 2))):
        cluster.give("b", Disconnected(A))
        assert not cluster.rafts[B].has_quorum(cluster.now)
        cluster.give("b", heard)
        assert cluster.rafts[B].has_quorum(cluster.now)


def test_a_lone_voter_leads_at_once() -> None:
    cluster = Cluster("a")
    assert cluster.rafts[A].is_ready
    cluster.propose("a", "x")
    assert cluster.commands("a") == ["x"]
    assert cluster.rafts[A].deadline() is None


# Who may say that there is a quorum


def test_the_survivor_of_three_soon_says_that_there_is_no_quorum() -> None:
    for survivor in "ab":
        cluster = Cluster()
        cluster.elect("a")
        cluster.run(700)
        assert cluster.rafts[node(survivor)].has_quorum(cluster.now)
        for other in set("abc") - {survivor}:
            cluster.kill(other)
        raft = cluster.rafts[node(survivor)]
        cluster.run(2_100)
        assert not raft.has_quorum(cluster.now)
        cluster.run(30_000)
        assert not raft.has_quorum(cluster.now)
        assert (raft.is_leader, raft.term) == (False, 2)


def test_everybody_knows_of_a_quorum_while_all_is_well() -> None:
    cluster = Cluster("abc", learners="de")
    cluster.elect("a")
    for _ in range(100):
        cluster.run(97)
        assert all(raft.has_quorum(cluster.now) for raft in cluster.rafts.values())
    assert cluster.rafts[A].hears(cluster.now) == nodes("abcde")
    assert cluster.rafts[B].hears(cluster.now) == nodes("ab")


def test_an_idle_mesh_says_little() -> None:
    cluster = Cluster("abc", learners="de")
    cluster.elect("a")
    cluster.run(1_000)
    said: list[ConsensusMessage] = []
    cluster.on_output = lambda name, output: said.append(output.message) if isinstance(output, Send) else None  # type: ignore[arg-type]
    cluster.run(60_000)
    assert sum(isinstance(m, Append) for m in said) == pytest.approx(2 * 120 + 2 * 60, abs=4)
    assert sum(isinstance(m, Appended) for m in said) == pytest.approx(2 * 120 + 2 * 60, abs=4)
    assert max(len(seal(m)) for m in said) < 120


def test_who_acknowledges_after_the_commit_hears_of_it_without_a_heartbeat() -> None:
    cluster = Cluster("abc", learners="d")
    cluster.elect("a")
    assert [cluster.rafts[n].commit for n in (A, B, C, D)] == [2, 2, 2, 2]
    cluster.propose("a", "x")
    cluster.settle()
    assert all(cluster.commands(name) == ["x"] for name in "abcd")


# Nobody without a log takes part


def test_a_newcomer_without_a_log_waits_and_then_gets_everything() -> None:
    cluster = Cluster("ab", learners="d", d=Restored())
    assert cluster.rafts[D].deadline() is None
    cluster.elect("a", "a", "b")
    cluster.propose("a", "x", "y")
    cluster.run(3_000)
    assert cluster.states[D] == cluster.states[A]
    assert cluster.rafts[D].voters == nodes("ab")


# Snapshots (5)


def grown(state: bytes) -> Cluster:
    """``a`` leads, has compacted its log into ``state``, and ``d`` knows nothing yet."""
    cluster = Cluster("ab", learners="d", d=Restored())
    cluster.elect("a", "a", "b")
    cluster.propose("a", "x", "y", "z")
    cluster.settle("a", "b")
    cluster.do("a", cluster.rafts[A].compact(cluster.now, state))
    cluster.letters.clear()
    return cluster


def packed(size: int) -> bytes:
    return bytes(msgpack.packb([[1, 1, "x" * size]]))


def test_5_compacting_keeps_what_follows_and_says_so() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.propose("a", "x")
    assert cluster.do("a", raft.compact(cluster.now, b"\x90")) == [
        PersistSnapshot(Snapshot(2, 2, (A, B, C), b"\x90"), keep_log=True)
    ]
    assert (raft.log.start, raft.log.last) == (2, 3)
    assert raft.compact(cluster.now, b"\x90") == []
    cluster.settle()
    assert cluster.commands("b") == ["x"]


def test_5_a_snapshot_travels_in_pieces_that_fit_a_message() -> None:
    cluster = grown(packed(3 * limits.CHUNK_BYTES))
    sizes: list[int] = []
    cluster.on_output = lambda name, output: (
        sizes.append(len(output.message.data))
        if isinstance(output, Send) and isinstance(output.message, Install)
        else None
    )
    cluster.run(2_000)
    assert cluster.rafts[D].commit == cluster.rafts[A].commit
    assert cluster.states[D][0] == [1, 1, "x" * 3 * limits.CHUNK_BYTES]
    assert max(sizes) == limits.CHUNK_BYTES
    assert sum(sizes) < 4 * limits.CHUNK_BYTES
    assert sum(size > 0 for size in sizes) == 4


def test_5_heartbeats_to_a_dead_follower_carry_no_piece_and_little_else() -> None:
    cluster = grown(packed(limits.CHUNK_BYTES))
    cluster.run(10_000, "a", "b")
    assert all(len(seal(le.message)) < 200 for le in cluster.take("a", "d"))


def test_probes_of_a_follower_that_died_far_behind_carry_few_entries() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", *("x" * 1_000 + str(i) for i in range(100)))
    cluster.take("a", "c")
    cluster.settle("a", "b")
    cluster.give("a", Received(C, Appended(2, matched=False, index=3)))
    cluster.run(10_000, "a", "b")
    probes = [le.message for le in cluster.take("a", "c")]
    assert all(isinstance(probe, Append) and probe.previous_index == 2 for probe in probes[-5:])
    assert max(len(seal(probe)) for probe in probes) < cluster.settings.probe_bytes + 1_000


def test_5_a_repeated_answer_starts_no_second_stream_of_pieces() -> None:
    cluster = grown(packed(3 * limits.CHUNK_BYTES))
    cluster.tick("a")
    for letter in cluster.take("a", "d"):
        cluster.deliver(letter)
    answers = cluster.take("d", "a")
    for _ in range(5):
        for answer in answers:
            cluster.deliver(answer)
    cluster.settle()
    for answer in answers:
        cluster.deliver(answer)
    assert [len(le.message.data) for le in cluster.take("a", "d") if isinstance(le.message, Install)] in ([], [0])


def test_5_a_lost_piece_is_sent_again_with_the_next_heartbeat() -> None:
    cluster = grown(packed(2 * limits.CHUNK_BYTES))
    lost = 0
    for _ in range(200):
        cluster.run(100, "a", "b")
        for letter in cluster.take("a", "d"):
            if isinstance(letter.message, Install) and letter.message.data and lost < 3:
                lost += 1
            else:
                cluster.deliver(letter)
        for letter in cluster.take("d", "a"):
            cluster.deliver(letter)
        if cluster.rafts[D].commit == cluster.rafts[A].commit:
            break
    assert lost == 3
    assert cluster.states[D][0] == [1, 1, "x" * 2 * limits.CHUNK_BYTES]


def test_5_the_snapshot_is_on_disk_before_it_is_acknowledged_and_restored() -> None:
    cluster = Cluster(a=Restored())
    snapshot = Snapshot(5, 2, (A, B), b"\x90")
    output = cluster.give("a", Received(B, Install(3, 5, 2, (A, B), 0, 1, b"\x90")))
    assert output[-3:] == [
        PersistSnapshot(snapshot, keep_log=False),
        Send(B, Installed(3, 5, 1)),
        Restore(snapshot),
    ]


@pytest.mark.parametrize(("terms", "kept"), [([1, 1, 2, 2], [2]), ([1, 1, 1, 1], []), ([1, 1], [])])
def test_5_entries_after_a_snapshot_stay_only_if_the_log_has_its_last_entry(terms: list[int], kept: list[int]) -> None:
    cluster = Cluster(a=Restored(2, None, Snapshot(0, 0, (A, B), b"\x90"), entries(*terms)))
    cluster.give("a", Received(B, Install(3, 3, 2, (A, B), 0, 1, b"\x90")))
    assert cluster.terms("a") == kept
    assert [e.term for e in cluster.disks[A].entries] == kept


def test_5_a_snapshot_that_is_older_than_what_is_committed_is_only_acknowledged() -> None:
    cluster = Cluster()
    cluster.elect("a")
    answer = cluster.give("b", Received(A, Install(2, 1, 1, (A, B, C), 0, 7, b"1234567")))
    assert answer == [Send(A, Installed(2, 1, 7))]


def test_voters_come_with_the_snapshot() -> None:
    cluster = Cluster(a=Restored())
    cluster.give("a", Received(B, Install(3, 5, 2, (A, B), 0, 1, b"\x90")))
    assert cluster.rafts[A].voters == nodes("ab")
    cluster.start("a")
    assert cluster.rafts[A].voters == nodes("ab")


# Sizes


def heavy(name: str, size: int) -> Cancel:
    return Cancel(RequestId(name), JobId("x" * size))


def test_entries_travel_in_messages_that_fit() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    for index in range(12):
        cluster.do("a", raft.propose(cluster.now, heavy(str(index), 900_000)))
    cluster.take("a", "c")
    sizes: list[int] = []

    def weigh(name: str, output: object) -> None:
        if isinstance(output, Send):
            sizes.append(len(seal(output.message)))
            open_envelope(seal(output.message), ConsensusMessage)

    cluster.on_output = weigh
    cluster.run(3_000)
    assert cluster.commands("c") == [str(index) for index in range(12)]
    assert max(sizes) < limits.CHUNK_BYTES + 1_000


def test_a_command_that_no_message_could_carry_is_not_proposed() -> None:
    cluster = Cluster("a")
    raft = cluster.rafts[A]
    assert raft.propose(cluster.now, heavy("x", limits.COMMAND_BYTES)) == []
    assert isinstance(raft.propose(cluster.now, heavy("x", limits.COMMAND_BYTES - 100))[0], PersistEntries)


def test_what_is_under_way_to_a_follower_has_a_bound() -> None:
    cluster = Cluster(settings=RaftSettings(entries_per_message=4, window_entries=16))
    raft = cluster.elect("a")
    for index in range(3 * cluster.settings.window_entries):
        cluster.do("a", raft.propose(cluster.now, command(str(index))))
    sent = sum(len(le.message.entries) for le in cluster.take("a", "c") if isinstance(le.message, Append))
    assert sent == cluster.settings.window_entries
    cluster.run(5_000)
    assert cluster.commands("c") == cluster.commands("a")


# Ends and misuse


def test_a_leader_that_stops_hands_over_at_once() -> None:
    cluster = Cluster()
    cluster.elect("a")
    assert cluster.give("a", Stopping()) == [Send(C, TimeoutNow(2))]
    cluster.settle()
    assert leading(cluster) == {C}


def test_a_lone_leader_or_a_follower_that_stops_has_nothing_to_hand_over() -> None:
    assert Cluster("a").give("a", Stopping()) == []
    assert Cluster().give("a", Stopping()) == []


def test_a_leader_that_votes_itself_out_has_an_heir_at_once() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.do("a", raft.change_voters(cluster.now, nodes("bc")))
    cluster.settle()
    assert len(leading(cluster)) == 1
    assert leading(cluster) <= {B, C}


def test_only_a_leader_proposes_changes_and_transfers() -> None:
    cluster = Cluster()
    raft = cluster.rafts[B]
    with pytest.raises(LocalProtocolError):
        raft.propose(cluster.now, command("x"))
    with pytest.raises(LocalProtocolError):
        raft.change_voters(cluster.now, nodes("ab"))
    with pytest.raises(LocalProtocolError):
        raft.transfer(cluster.now, C)


@pytest.mark.parametrize("to", ["a", "d", "z"])
def test_the_lead_goes_only_to_another_voter(to: str) -> None:
    cluster = Cluster("abc", learners="d")
    raft = cluster.elect("a")
    with pytest.raises(LocalProtocolError):
        raft.transfer(cluster.now, node(to))


@pytest.mark.parametrize(
    "message",
    [
        Append(2, 5, 9, (), 0),
        Append(2, 0, 0, entries(1, first=3), 0),
        Append(2, 0, 0, entries(2, 2), 0),
        Install(2, 9, 2, (), 3, 2, b""),
        Install(2, 9, 2, (C,), 0, 1, b"x"),
        TimeoutNow(2),
        Appended(2, matched=False, index=1 << 50),
        Appended(2, matched=True, index=1 << 50),
        Installed(2, 1, 1 << 50),
        Noop(),
    ],
)
def test_nonsense_from_a_member_neither_stops_nor_moves_a_leader(message: ConsensusMessage) -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    before = (raft.term, raft.commit, raft.log.last)
    for sender in "bcz":
        cluster.give("a", Received(node(sender), message))
    cluster.give("a", Ticked())
    assert raft.is_leader
    assert (raft.term, raft.commit, raft.log.last) == before


def test_a_leader_that_would_change_what_is_committed_gets_no_promise() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a", "x")
    cluster.settle()
    cluster.run(1_000)
    assert cluster.rafts[B].commit == 3
    forged = Append(9, 1, 1, entries(9, 9, first=2), 3)
    cluster.give("b", Received(C, forged))
    assert cluster.terms("b") == [2, 2]

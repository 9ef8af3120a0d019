"""Raft, rule by rule. Sections are those of Ongaro's dissertation, "Consensus: Bridging Theory and Practice" (2014)."""

import pytest

from dmi_protocol.consensus.settings import RaftSettings, Restored
from dmi_protocol.effects import PersistEntries, PersistVote, Send
from dmi_protocol.errors import LocalProtocolError
from dmi_protocol.events import Received, Ticked
from dmi_protocol.instant import Instant
from dmi_protocol.messages.consensus import (
    Append,
    Appended,
    Entry,
    Noop,
    PreVote,
    PreVoted,
    Snapshot,
    TimeoutNow,
    Vote,
    Voted,
    Voters,
)
from tests.protocol.consensus.cluster import Cluster, command, entries, node, nodes

A, B, C, D = map(node, "abcd")
ELECTION_MS = RaftSettings().election_ms


def begun(terms: list[int], term: int, voters: str = "abc") -> Restored:
    """A node that was started again with this log (its snapshot is at index 0 of term 0, as in the paper)."""
    return Restored(term, None, Snapshot(0, 0, tuple(sorted(nodes(voters))), b"\x90"), entries(*terms))


def hear(cluster: Cluster, name: str, sender: str, message: object) -> list[object]:
    assert isinstance(message, Append | Appended | PreVote | PreVoted | Vote | Voted | TimeoutNow)
    return list(cluster.give(name, Received(node(sender), message)))


# 3.3 Terms


@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_3_3_a_larger_term_makes_a_follower_of_anyone(role: str) -> None:
    cluster = Cluster()
    raft = cluster.rafts[A]
    if role == "leader":
        cluster.elect("a")
    elif role == "candidate":
        cluster.tick("a")
        hear(cluster, "a", "b", PreVoted(2, granted=True))
    term = raft.term
    output = hear(cluster, "a", "c", Append(term + 1, 9, term + 1, (), 0))
    assert (raft.term, raft.is_leader, raft.leader) == (term + 1, False, C)
    assert output[0] == PersistVote(term + 1, None)


def test_3_3_a_request_of_an_older_term_is_rejected_with_the_newer_one() -> None:
    cluster = Cluster(a=begun([1, 2], 5))
    assert hear(cluster, "a", "b", Append(4, 2, 2, (), 2)) == [Send(B, Appended(5, matched=False, index=3))]
    assert hear(cluster, "a", "b", Vote(4, 9, 9)) == [Send(B, Voted(5, granted=False))]
    assert cluster.rafts[A].leader is None


# 3.4 Leader election


def test_3_4_a_node_starts_as_a_follower() -> None:
    raft = Cluster().rafts[A]
    assert (raft.is_leader, raft.leader, raft.term) == (False, None, 1)


def test_3_4_a_leader_sends_heartbeats_to_everybody() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.letters.clear()
    cluster.tick("a")
    assert {le.to for le in cluster.letters} == {B, C}
    assert all(isinstance(le.message, Append) and not le.message.entries for le in cluster.letters)


def test_3_4_a_follower_that_hears_nothing_campaigns_in_the_next_term_with_its_own_vote() -> None:
    cluster = Cluster()
    cluster.tick("a")
    output = hear(cluster, "a", "b", PreVoted(2, granted=True))
    assert output == [PersistVote(2, A), Send(B, Vote(2, 1, 1)), Send(C, Vote(2, 1, 1))]
    assert cluster.rafts[A].term == 2


def test_3_4_timeouts_are_spread_between_one_and_two_election_timeouts() -> None:
    deadlines = [Cluster(seed=seed).rafts[A].deadline() or 0 for seed in range(200)]
    assert min(deadlines) >= ELECTION_MS
    assert max(deadlines) < 2 * ELECTION_MS
    assert max(deadlines) - min(deadlines) > 0.8 * ELECTION_MS


@pytest.mark.parametrize(("size", "wanted"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_3_4_a_majority_makes_a_leader(size: int, wanted: int) -> None:
    cluster = Cluster("abcde"[:size])
    raft = cluster.rafts[A]
    if not raft.is_leader:
        cluster.tick("a")
        for voter in "bcde"[: size // 2]:
            hear(cluster, "a", voter, PreVoted(2, granted=True))
    votes = 0
    while not raft.is_leader:
        hear(cluster, "a", "bcde"[votes], Voted(2, granted=True))
        votes += 1
    assert votes == wanted


def test_3_4_refusals_and_repeated_votes_make_no_leader() -> None:
    cluster = Cluster("abcde")
    cluster.tick("a")
    for voter in "bc":
        hear(cluster, "a", voter, PreVoted(2, granted=True))
    for _ in range(3):
        hear(cluster, "a", "b", Voted(2, granted=True))
        hear(cluster, "a", "c", Voted(2, granted=False))
        hear(cluster, "a", "z", Voted(2, granted=True))
        hear(cluster, "a", "d", Voted(1, granted=True))
    assert not cluster.rafts[A].is_leader


@pytest.mark.parametrize(("voted_for", "granted"), [(None, True), ("b", True), ("c", False)])
def test_3_4_one_vote_a_term_first_come_first_served(voted_for: str | None, granted: bool) -> None:
    cluster = Cluster(a=Restored(4, node(voted_for) if voted_for else None, Cluster().disks[A].snapshot))
    assert hear(cluster, "a", "b", Vote(4, 1, 1))[-1] == Send(B, Voted(4, granted=granted))


def test_3_4_a_candidate_gives_way_to_a_leader_of_its_term() -> None:
    cluster = Cluster()
    cluster.tick("a")
    hear(cluster, "a", "b", PreVoted(2, granted=True))
    hear(cluster, "a", "c", Append(2, 1, 1, (), 1))
    hear(cluster, "a", "b", Voted(2, granted=True))
    assert (cluster.rafts[A].is_leader, cluster.rafts[A].leader) == (False, C)


def test_3_4_a_split_vote_is_settled_by_another_round() -> None:
    cluster = Cluster("ab")
    for name in "ab":
        cluster.tick(name)
    for one, other in ("ab", "ba"):
        hear(cluster, one, other, PreVoted(2, granted=True))
    cluster.settle()
    assert not any(raft.is_leader for raft in cluster.rafts.values())
    cluster.until(lambda: any(raft.is_leader for raft in cluster.rafts.values()))


# 3.5 Log replication


def test_3_5_a_proposal_is_appended_before_it_is_sent() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    output = raft.propose(cluster.now, command("x"))
    entry = Entry(3, raft.term, command("x"))
    assert output[0] == PersistEntries(3, (entry,))
    assert output[1:] == [Send(to, Append(2, 2, 2, (entry,), 2)) for to in (B, C)]


@pytest.mark.parametrize(("size", "wanted"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_3_5_an_entry_is_committed_when_a_majority_has_it(size: int, wanted: int) -> None:
    cluster = Cluster("abcde"[:size])
    cluster.elect("a")
    cluster.propose("a", "x")
    cluster.letters.clear()
    for acknowledged, voter in enumerate("bcde"[: size - 1], 1):
        hear(cluster, "a", voter, Appended(2, matched=True, index=3))
        assert (cluster.commands("a") == ["x"]) == (acknowledged >= wanted)


def test_3_5_followers_learn_what_is_committed_and_apply_it_in_order() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", "x", "y", "z")
    cluster.settle()
    assert cluster.commands("b") == cluster.commands("c") == ["x", "y", "z"]


def test_3_5_a_follower_commits_no_more_than_it_has_from_this_leader() -> None:
    cluster = Cluster(a=begun([1, 1, 1], 2))
    hear(cluster, "a", "b", Append(2, 1, 1, (), 3))
    assert cluster.rafts[A].commit == 1


def test_3_5_an_acknowledgement_follows_the_write() -> None:
    cluster = Cluster(a=begun([1], 2))
    new = entries(2, first=2)
    output = hear(cluster, "a", "b", Append(2, 1, 1, new, 0))
    assert output == [PersistEntries(2, new), Send(B, Appended(2, matched=True, index=2))]


FIGURE_3_6 = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
"""The leader's log in figure 3.6 (figure 7 of the paper), and six followers that crashes may have made."""


@pytest.mark.parametrize(
    "theirs",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
    ids="abcdef",
)
def test_3_5_a_leader_brings_any_follower_to_its_own_log(theirs: list[int]) -> None:
    cluster = Cluster(a=begun(FIGURE_3_6, 7), b=begun(theirs, 7), c=begun(FIGURE_3_6[:4], 7))
    cluster.elect("a", "a", "c")
    cluster.run(2_000)
    assert cluster.terms("a") == [*FIGURE_3_6, 8]
    assert cluster.terms("b") == cluster.terms("a")
    assert cluster.commands("b") == cluster.commands("a")
    assert tuple(cluster.disks[B].entries) == cluster.rafts[A].log.between(1, 11)


def test_3_5_a_conflicting_entry_is_deleted_with_all_that_follow_it() -> None:
    cluster = Cluster(a=begun([1, 1, 2, 2], 3))
    hear(cluster, "a", "b", Append(3, 2, 1, entries(3, first=3), 0))
    assert cluster.terms("a") == [1, 1, 3]
    assert [entry.term for entry in cluster.disks[A].entries] == [1, 1, 3]


def test_3_5_a_repeated_or_late_append_deletes_nothing() -> None:
    cluster = Cluster(a=begun([1, 1, 1], 1))
    output = hear(cluster, "a", "b", Append(1, 1, 1, entries(1, first=2), 0))
    assert output == [Send(B, Appended(1, matched=True, index=2))]
    assert cluster.terms("a") == [1, 1, 1]


# 3.6 Safety


@pytest.mark.parametrize(
    ("last_term", "last_index", "granted"),
    [(2, 3, True), (2, 4, True), (3, 1, True), (2, 2, False), (1, 9, False)],
)
@pytest.mark.parametrize("ask", [Vote, PreVote])
def test_3_6_1_votes_go_to_logs_that_are_at_least_as_complete(
    ask: type[Vote | PreVote], last_term: int, last_index: int, granted: bool
) -> None:
    cluster = Cluster(a=begun([1, 2, 2], 4))
    answer = hear(cluster, "a", "b", ask(5, last_index, last_term))[-1]
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Voted | PreVoted)
    assert answer.message.granted == granted


def test_3_6_2_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Figure 3.7: S1 leads term 4 and replicates its entry of term 2; a majority has it, and S5 could still erase it."""
    cluster = Cluster("abcde", a=begun([1, 2], 3, "abcde"))
    raft = cluster.rafts[A]
    cluster.tick("a")
    for voter in "bc":
        hear(cluster, "a", voter, PreVoted(4, granted=True))
    for voter in "bc":
        hear(cluster, "a", voter, Voted(4, granted=True))
    for voter in "bcd":
        hear(cluster, "a", voter, Appended(4, matched=True, index=2))
    assert (raft.commit, raft.is_ready) == (0, False)
    for voter in "bc":
        hear(cluster, "a", voter, Appended(4, matched=True, index=3))
    assert (raft.commit, raft.is_ready) == (3, True)


# 3.8 Persisted state


def test_3_8_a_vote_is_on_disk_before_the_answer_leaves() -> None:
    cluster = Cluster()
    output = hear(cluster, "a", "b", Vote(2, 1, 1))
    assert output[-2:] == [PersistVote(2, B), Send(B, Voted(2, granted=True))]


def test_3_8_a_node_that_was_started_again_votes_as_before() -> None:
    cluster = Cluster()
    hear(cluster, "a", "b", Vote(2, 1, 1))
    cluster.start("a")
    assert hear(cluster, "a", "c", Vote(2, 1, 1)) == [Send(C, Voted(2, granted=False))]
    assert hear(cluster, "a", "b", Vote(2, 1, 1))[-1] == Send(B, Voted(2, granted=True))


def test_3_8_what_was_acknowledged_is_there_after_a_restart() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", "x")
    cluster.settle()
    for name in "abc":
        cluster.start(name)
    assert [cluster.rafts[node(name)].commit for name in "abc"] == [1, 1, 1]
    cluster.elect("b")
    assert cluster.commands("b") == cluster.commands("a") == ["x"]


# 3.9 Timing


def test_3_9_an_election_timeout_is_several_heartbeats() -> None:
    RaftSettings().check()
    with pytest.raises(AssertionError):
        RaftSettings(heartbeat_ms=600).check()


# 3.10 Leadership transfer


def test_3_10_a_successor_campaigns_at_once_and_is_voted_for_while_the_leader_is_heard() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.do("a", raft.transfer(cluster.now, B))
    cluster.settle()
    assert [cluster.rafts[n].is_leader for n in (A, B, C)] == [False, True, False]
    assert cluster.rafts[B].term == 3


def test_3_10_a_successor_gets_the_whole_log_first() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.propose("a", "x")
    cluster.letters.clear()
    cluster.do("a", raft.transfer(cluster.now, B))
    assert not any(isinstance(le.message, TimeoutNow) for le in cluster.letters)
    output = hear(cluster, "a", "b", Appended(2, matched=True, index=3))
    assert output[-1] == Send(B, TimeoutNow(2))


def test_3_10_a_transfer_that_takes_an_election_timeout_is_given_up() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.propose("a", "x")
    cluster.letters.clear()
    cluster.do("a", raft.transfer(cluster.now, B))
    cluster.now = Instant(cluster.now + ELECTION_MS)
    assert Send(B, TimeoutNow(2)) not in hear(cluster, "a", "b", Appended(2, matched=True, index=3))
    assert raft.is_leader


# 4.1 Voters


def test_4_1_new_voters_are_in_force_when_they_are_appended() -> None:
    cluster = Cluster("abc", learners="d")
    raft = cluster.elect("a")
    cluster.do("a", raft.change_voters(cluster.now, nodes("abcd")))
    assert raft.voters == nodes("abcd")
    cluster.settle("a", "d")
    assert cluster.rafts[D].voters == nodes("abcd")
    assert raft.commit == 2
    cluster.settle()
    assert raft.commit == 3


@pytest.mark.parametrize("voters", ["ade", "abc", "a", "abcde", ""])
def test_4_1_voters_change_by_exactly_one(voters: str) -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    with pytest.raises(LocalProtocolError):
        raft.change_voters(cluster.now, nodes(voters))


def test_4_1_the_last_voter_stays() -> None:
    cluster = Cluster("a")
    with pytest.raises(LocalProtocolError):
        cluster.rafts[A].change_voters(cluster.now, frozenset())


def test_4_1_no_change_while_one_is_in_flight() -> None:
    cluster = Cluster("abc", learners="d")
    raft = cluster.elect("a")
    cluster.do("a", raft.change_voters(cluster.now, nodes("abcd")))
    with pytest.raises(LocalProtocolError):
        raft.change_voters(cluster.now, nodes("abc"))
    cluster.settle()
    assert raft.may_change_voters()


def test_4_1_no_change_before_an_entry_of_the_own_term_is_committed() -> None:
    """The correction of 2015: without it two changes of different leaders can make two disjoint quorums."""
    cluster = Cluster("abc", learners="d")
    cluster.tick("a")
    hear(cluster, "a", "b", PreVoted(2, granted=True))
    hear(cluster, "a", "b", Voted(2, granted=True))
    raft = cluster.rafts[A]
    assert raft.is_leader
    with pytest.raises(LocalProtocolError):
        raft.change_voters(cluster.now, nodes("abcd"))
    hear(cluster, "a", "b", Appended(2, matched=True, index=2))
    raft.change_voters(cluster.now, nodes("abcd"))


def test_4_1_voters_go_back_when_their_entry_is_deleted() -> None:
    cluster = Cluster()
    hear(cluster, "a", "b", Append(2, 1, 1, (Entry(2, 2, Voters((A, B, C, D))),), 1))
    assert cluster.rafts[A].voters == nodes("abcd")
    hear(cluster, "a", "c", Append(3, 1, 1, (Entry(2, 3, Noop()),), 1))
    assert cluster.rafts[A].voters == nodes("abc")


def test_4_2_1_a_learner_gets_the_log_and_neither_votes_nor_counts() -> None:
    cluster = Cluster("abc", learners="de")
    raft = cluster.elect("a")
    cluster.propose("a", "x")
    cluster.settle("a", "d", "e")
    assert cluster.rafts[D].log.last == 3
    assert raft.commit == 2
    cluster.run(10_000, "d", "e")
    assert cluster.rafts[D].deadline() is None
    assert not any(isinstance(le.message, PreVote | Vote) for le in cluster.letters)


def test_4_2_2_a_leader_that_is_voted_out_leads_until_that_is_committed_and_does_not_count_itself() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.do("a", raft.change_voters(cluster.now, nodes("bc")))
    cluster.letters.clear()
    hear(cluster, "a", "b", Appended(2, matched=True, index=3))
    assert (raft.is_leader, raft.commit) == (True, 2)
    output = hear(cluster, "a", "c", Appended(2, matched=True, index=3))
    assert (raft.is_leader, raft.commit) == (False, 3)
    assert output[-1] == Send(C, TimeoutNow(2))


def test_4_2_2_a_removed_voter_never_campaigns_again() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.do("a", raft.change_voters(cluster.now, nodes("ab")))
    cluster.settle()
    assert cluster.rafts[C].voters == nodes("ab")
    assert cluster.rafts[C].deadline() is None
    assert cluster.rafts[C].step(Instant(cluster.now + 60_000), Ticked()) == []


def test_4_2_3_a_vote_that_nobody_needs_changes_no_term() -> None:
    cluster = Cluster()
    cluster.elect("a")
    assert hear(cluster, "b", "c", Vote(9, 9, 9)) == []
    assert hear(cluster, "a", "c", Vote(9, 9, 9)) == []
    assert [cluster.rafts[n].term for n in (A, B)] == [2, 2]


def test_4_2_3_a_vote_for_a_successor_is_not_ignored() -> None:
    cluster = Cluster()
    cluster.elect("a")
    assert hear(cluster, "b", "c", Vote(3, 2, 2, transfer=True))[-1] == Send(C, Voted(3, granted=True))


# 6.2 Check-quorum


def test_6_2_a_leader_without_a_quorum_steps_down_after_an_election_timeout() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.run(ELECTION_MS + RaftSettings().heartbeat_ms, "a")
    assert not raft.is_leader
    assert not raft.has_quorum(cluster.now)


def test_6_2_a_leader_that_hears_one_of_two_goes_on() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.run(20_000, "a", "b")
    assert (raft.is_leader, raft.term) == (True, 2)
    assert raft.hears(cluster.now) == nodes("ab")


def test_6_4_a_new_leader_commits_something_of_its_own_term_first() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    assert cluster.rafts[B].log.between(2, 2) == (Entry(2, 2, Noop()),)
    assert raft.is_ready


# 9.6 Pre-vote


def test_9_6_a_pre_vote_raises_no_term_and_writes_nothing() -> None:
    cluster = Cluster()
    assert cluster.tick("a") == [Send(B, PreVote(2, 1, 1)), Send(C, PreVote(2, 1, 1))]
    assert cluster.rafts[A].term == 1
    assert hear(cluster, "b", "a", PreVote(2, 1, 1)) == [Send(A, PreVoted(2, granted=True))]
    assert cluster.rafts[B].term == 1


def test_9_6_who_hears_the_leader_refuses() -> None:
    cluster = Cluster()
    cluster.elect("a")
    assert hear(cluster, "b", "c", PreVote(3, 9, 9)) == [Send(C, PreVoted(2, granted=False))]
    assert hear(cluster, "a", "c", PreVote(3, 9, 9)) == [Send(C, PreVoted(2, granted=False))]


def test_9_6_who_was_cut_off_does_not_disturb_when_it_is_back() -> None:
    cluster = Cluster()
    raft = cluster.elect("a")
    cluster.run(30_000, "a", "b")
    cluster.letters.clear()
    assert cluster.give("c", Ticked()) == [Send(A, PreVote(3, 2, 2)), Send(B, PreVote(3, 2, 2))]
    cluster.run(10_000)
    assert (raft.is_leader, cluster.rafts[C].leader) == (True, A)
    assert {each.term for each in cluster.rafts.values()} == {2}

"""Stories of whole peers on a perfect network."""

from functools import partial

import pytest

from dmi_protocol import effects as do
from dmi_protocol import events as on
from dmi_protocol.cluster.command import Admit, Cancel, Remove, Submit, TrainingSpec
from dmi_protocol.identity import BlobHash, JobId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.consensus import ConsensusMessage, TimeoutNow
from dmi_protocol.messages.roles import Bound, Completed, Exited, Lease, PartWritten, Progressed, Roster
from dmi_protocol.reasons import DiskFree, DiskFull, InvitationUsed, NoQuorum, RoleDied, TimedOut, WasExpelled
from dmi_protocol.sentences import sentence
from tests.protocol.assignments import training, workers
from tests.protocol.little import Little, me


def mesh(size: int, seed: int = 0) -> Little:
    little = Little(seed)
    little.add("n0", founder=True)
    little.until(lambda: little.peers["n0"].raft.is_ready)
    for index in range(1, size):
        little.join("n0", f"n{index}")
    wanted = {1: 1, 2: 1, 3: 3, 4: 3, 5: 5}[size]
    little.until(
        lambda: (
            all(len(p.raft.voters) == wanted and len(p.state.members) == size for p in little.peers.values() if p.state)
            and all(p.state for p in little.peers.values())
        )
    )
    return little


def test_a_founder_leads_at_once() -> None:
    little = Little()
    little.add("n0", founder=True)
    assert little.until(lambda: little.peers["n0"].raft.is_ready) < 5_000


def test_five_nodes_have_five_voters_and_one_state() -> None:
    little = mesh(5)
    little.run(3_000)
    digests = {p.state.digest() for p in little.peers.values() if p.state}
    assert len(digests) == 1
    assert all(
        v == "alive"
        for p in little.peers.values()
        for v in [p.standing(n) for n in (p.state.members if p.state else ())]
    )


def test_two_nodes_have_one_voter() -> None:
    little = mesh(2)
    little.run(5_000)
    assert len(little.peers["n0"].raft.voters) == 1


def another_leads(little: Little, old: str) -> bool:
    return little.leader() not in {"", old}


def test_another_node_leads_within_a_second() -> None:
    times = []
    for seed in range(20):
        little = mesh(3, seed)
        little.run(2_000)
        old = little.leader()
        little.kill(old)
        times.append(little.until(partial(another_leads, little, old)))
    assert sorted(times)[10] < 500
    assert max(times) < 2_000


def test_a_killed_node_is_seen_dead_and_comes_back() -> None:
    little = mesh(3)
    little.run(3_000)
    little.kill("n2")
    n2 = me("n2").node
    assert little.until(lambda: little.peers["n0"].standing(n2) == "dead") < 3_000
    little.start("n2")
    assert little.until(lambda: all(little.peers[n].standing(n2) == "alive" for n in ("n0", "n1"))) < 500


def test_an_invitation_works_once() -> None:
    little = mesh(2)
    who = me("n9")
    key = PublicKey("invitation-n1".ljust(40, "."))
    little.ask("n1", Admit(RequestId("again"), key, 0, "n9", who.address, who.public_key, witness=False))
    assert little.answer("again").refusal == InvitationUsed()


def test_without_a_quorum_the_reason_names_who_is_away() -> None:
    little = mesh(3)
    little.run(2_000)
    leader = little.leader()
    for name in {"n0", "n1", "n2"} - {leader}:
        little.kill(name)
    little.until(lambda: not little.peers[leader].view(little.now).quorum, 10_000)
    little.run(3_000)
    assert "no quorum" in (little.peers[leader].view(little.now).quorum_reason or "")
    little.ask(leader, Cancel(RequestId("c"), JobId("x")), 2_000)
    assert isinstance(little.answer("c").refusal, NoQuorum)


def submit(little: Little, name: str = "n1") -> JobId:
    spec = TrainingSpec("job", "train.py")
    little.ask(name, Submit(RequestId("s"), spec, BlobHash("b" * 64), (me("n0").node,)))
    return JobId(little.answer("s").value)


def started(little: Little) -> list[tuple[str, do.StartRole]]:
    return [(name, effect) for name, effect in little.did if isinstance(effect, do.StartRole)]


def test_a_job_runs_to_its_end() -> None:
    little = mesh(3)
    job = submit(little)
    little.until(lambda: len(started(little)) == 6)
    for name, effect in started(little):
        little.give(name, on.RoleHappened(effect.role, Bound("127.0.0.1:1", PublicKey("k" * 40), 1)))
    little.until(lambda: all(little.state(n).jobs[job].state == "running" for n in little.peers))
    told = [e.message for _, e in little.did if isinstance(e, do.TellRole)]
    assert len([message for message in told if isinstance(message, Roster)]) == 6
    assert len([message for message in told if isinstance(message, Lease)]) >= 3, "every server may answer"
    for name, effect in started(little):
        if effect.role.role == "server":
            part = PartWritten(12, effect.role.index, BlobHash(f"{effect.role.index}" * 64), "p", 1, final=True)
            little.give(name, on.RoleHappened(effect.role, part))
        elif effect.role.index == 0:
            little.give(name, on.RoleHappened(effect.role, Progressed(12, 12, 100.0, 0.5)))
        little.give(name, on.RoleHappened(effect.role, Completed()))
    little.until(lambda: all(little.state(n).jobs[job].state == "succeeded" for n in little.peers))
    shown = little.peers["n2"].view(little.now).jobs[0]
    assert (shown.step, shown.steps, shown.loss) == (12, 12, 0.5)
    stopped = [effect.role for _, effect in little.did if isinstance(effect, do.StopRole)]
    assert len(stopped) == 6, "they were there until now"


def test_a_role_that_dies_has_the_job_placed_again_at_once() -> None:
    little = mesh(3)
    job = submit(little)
    little.until(lambda: len([e for _, e in little.did if isinstance(e, do.StartRole)]) == 6)
    name, effect = next((n, e) for n, e in little.did if isinstance(e, do.StartRole))
    little.give(name, on.RoleHappened(effect.role, Exited(-9, 9)))
    assert little.until(lambda: all(little.state(n).jobs[job].generation == 2 for n in little.peers)) < 100
    assert [e.reason for n, e in little.did if n == "n0" and isinstance(e, do.Explain)] == [
        RoleDied(effect.role.name, name, -9, 9, stalled=False)
    ]


def test_a_node_that_dies_while_a_job_starts_costs_a_generation() -> None:
    little = mesh(3)
    little.run(2_000)
    little.ask(
        "n1", Submit(RequestId("s"), TrainingSpec("job", "t.py", workers=2), BlobHash("b" * 64), (me("n0").node,))
    )
    little.until(lambda: len([e for _, e in little.did if isinstance(e, do.StartRole)]) == 4)
    victim = next(n for n, e in little.did if isinstance(e, do.StartRole))
    little.kill(victim)
    little.until(lambda: all(job.generation == 2 for name in little.peers for job in little.state(name).jobs.values()))


def test_the_log_is_compacted_and_a_newcomer_gets_the_snapshot() -> None:
    little = mesh(3)
    leader = little.leader()
    for number in range(1_100):
        little.ask(leader, Cancel(RequestId(f"r{number}"), JobId("x")))
    little.run(2_000)
    assert all(p.raft.log.start > 1 for p in little.peers.values())
    little.join(leader, "n3")
    little.until(
        lambda: little.peers["n3"].state is not None and little.state("n3").digest() == little.state(leader).digest()
    )


def test_a_last_checkpoint_and_the_final_state_may_interleave() -> None:
    """Three shards tell both for the same step, in an order in which the one completes in the middle of the other."""
    little = mesh(3)
    job = submit(little)
    little.until(lambda: len(started(little)) == 6)
    for name, effect in started(little):
        little.give(name, on.RoleHappened(effect.role, Bound("127.0.0.1:1", PublicKey("k" * 40), 1)))
    little.until(lambda: all(little.state(n).jobs[job].state == "running" for n in little.peers))
    servers = {
        effect.role.index: (name, effect.role) for name, effect in started(little) if effect.role.role == "server"
    }
    for index, final in ((0, False), (1, False), (0, True), (2, False), (1, True), (2, True)):
        name, role = servers[index]
        blob = BlobHash(f"{index}" * 64)
        little.give(name, on.RoleHappened(role, PartWritten(12, index, blob, "p", 1, final)))
        little.run(50)
    assert training(little.state("n0"), job).final


def is_without(little: Little, gone: str) -> bool:
    """Do the others agree, without ``gone``, and may they go on?"""
    others = [name for name in little.peers if name != gone]
    views = [little.peers[name].view(little.now) for name in others]
    return all(view.quorum and {member.name for member in view.members} == set(others) for view in views)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("leads", [True, False])
def test_a_node_that_leaves_is_told_and_the_others_go_on(size: int, *, leads: bool) -> None:
    """Whoever it is: the only voter of two nodes hands its vote over, and a learner hears that it is out."""
    little = mesh(size)
    little.run(2_000)
    gone = next(name for name in sorted(little.peers) if (name == little.leader()) == leads)
    little.ask(gone, Remove(RequestId("leave"), me(gone).node))
    assert little.answer("leave").refusal is None
    assert not little.effects(gone, do.Retire), "it knows already"
    little.give(gone, on.Stopping())
    little.run(10)
    little.kill(gone)
    little.until(lambda: is_without(little, gone), 5_000)
    other = next(iter(little.peers))
    little.ask(other, Cancel(RequestId("on"), JobId("x")))
    assert not isinstance(little.answer("on").refusal, NoQuorum)


@pytest.mark.parametrize("leads", [True, False])
def test_a_member_that_is_expelled_is_cut_off_and_the_others_go_on(*, leads: bool) -> None:
    little = mesh(3)
    little.run(2_000)
    leader = little.leader()
    gone = leader if leads else next(name for name in sorted(little.peers) if name != leader)
    asker = next(name for name in sorted(little.peers) if name not in {gone, leader})
    little.ask(asker, Remove(RequestId("expel"), me(gone).node))
    assert little.answer("expel").refusal is None
    little.until(lambda: is_without(little, gone), 5_000)
    node = me(gone).node
    assert {name for name, effect in little.did if effect == do.Unlink(node)} == set(little.peers) - {gone}
    little.run(5_000)
    assert is_without(little, gone)
    assert [(name, e) for name, e in little.did if isinstance(e, do.Retire)] == [(gone, do.Retire(WasExpelled()))]


def test_the_only_voter_cannot_leave_while_nobody_can_follow_it() -> None:
    little = mesh(2)
    little.run(2_000)
    little.kill("n1")
    little.until(lambda: little.peers["n0"].standing(me("n1").node) == "dead", 10_000)
    little.ask("n0", Remove(RequestId("leave"), me("n0").node), 2_000)
    assert isinstance(little.answer("leave").refusal, TimedOut)
    assert me("n0").node in little.state("n0").members
    little.ask("n0", Remove(RequestId("expel"), me("n1").node))
    assert little.answer("expel").refusal is None
    little.ask("n0", Remove(RequestId("end"), me("n0").node))
    assert little.answer("end").refusal is None, "the last node of a mesh may end it"


def test_a_newcomer_votes_once_it_has_the_log() -> None:
    """Raft, 4.2.1: counted before, its vote could be what a commit waits for. n3 is alive, but the log does not reach it."""
    little = mesh(3)
    leader = little.leader()
    little.cut = {(leader, "n3"), ("n3", leader)}
    for name in ("n3", "n4"):
        little.join(leader, name)
    little.run(5_000)
    assert little.peers[leader].standing(me("n3").node) == "alive"
    assert len(little.peers[leader].raft.voters) == 3
    little.cut = set()
    assert little.until(lambda: len(little.peers[leader].raft.voters) == 5) < 2_000


def promises(little: Little, name: str) -> list[do.Send]:
    """What consensus at ``name`` says from now on."""
    peer = little.peers[name]
    said: list[do.Send] = []
    step = peer.step

    def listen(now: Instant, event: on.Event) -> list[do.Effect]:
        effects = step(now, event)
        said.extend(e for e in effects if isinstance(e, do.Send) and isinstance(e.message, ConsensusMessage))
        return effects

    peer.step = listen  # type: ignore[method-assign]
    return said


def test_a_coordinator_whose_disk_is_full_steps_aside_at_once_and_comes_back() -> None:
    """The simulator has disks that are; here nothing was under way."""
    little = mesh(3)
    little.run(2_000)
    old = little.leader()
    said = promises(little, old)
    little.give(old, on.DiskFailed("no space"))
    assert little.until(partial(another_leads, little, old)) < 100, "it asked another one to lead"
    little.run(10_000)
    assert [type(send.message) for send in said] == [TimeoutNow]
    view = little.peers[old].view(little.now)
    assert (view.quorum, view.coordinator) == (False, None)
    assert view.quorum_reason == sentence(DiskFull(old, "no space"))
    other = little.peers[little.leader()].view(little.now)
    assert other.quorum
    assert {member.name: member.trouble for member in other.members if member.trouble} == {old: view.quorum_reason}
    assert {member.state for member in other.members} == {"alive"}
    little.ask(old, Cancel(RequestId("c"), JobId("x")), 1_000)
    assert little.answer("c").refusal == DiskFull(old, "no space")

    little.give(old, on.DiskReturned())
    little.until(lambda: little.peers[old].view(little.now).quorum, 3_000)
    little.run(2_000)
    other = little.peers[little.leader()].view(little.now)
    assert not any(member.trouble for member in other.members)
    assert [e.reason for n, e in little.did if n == old and isinstance(e, do.Explain)] == [
        DiskFull(old, "no space"),
        DiskFree(old),
    ]


def test_a_voter_whose_disk_is_full_is_replaced_and_its_roles_are_played_elsewhere() -> None:
    little = mesh(4)
    little.run(2_000)
    voters = {name for name in little.peers if me(name).node in little.peers[little.leader()].raft.voters}
    full = next(name for name in sorted(voters) if name != little.leader())
    job = submit(little, little.leader())
    little.until(lambda: len(started(little)) == 8)
    little.give(full, on.DiskFailed("no space"))
    others = [name for name in little.peers if name != full]
    little.until(lambda: all(little.state(name).jobs[job].generation == 2 for name in others))
    assert me(full).node not in workers(little.state(others[0]).jobs[job].placements)
    leader = little.peers[little.leader()]
    little.until(lambda: me(full).node not in leader.raft.voters and len(leader.raft.voters) == 3)
    little.give(full, on.DiskReturned())
    little.until(lambda: little.state(full).applied == little.state(others[0]).applied, 5_000)


def leads(little: Little, *names: str) -> bool:
    return little.leader() in names


def test_who_was_away_is_introduced_to_a_coordinator_that_it_never_met() -> None:
    """Simulation, seed 454: it would not listen to a stranger, and the stranger was the only one to tell it anything."""
    little = mesh(3)
    little.kill("n2")
    for name in ("n3", "n4"):
        little.join(little.leader(), name)
    little.until(lambda: {me("n3").node, me("n4").node} <= little.peers[little.leader() or "n3"].raft.voters)
    for _ in range(20):
        if leads(little, "n3", "n4"):
            break
        old = little.leader()
        little.kill(old)
        little.until(partial(another_leads, little, old))
        little.start(old)
        little.run(2_000)
    assert leads(little, "n3", "n4")
    little.start("n2")
    little.until(lambda: leads(little, "n3", "n4") and little.state("n2").applied == little.state("n3").applied, 5_000)
    assert len(little.state("n2").members) == 5

"""SWIM and Lifeguard, rule by rule."""

from random import Random

import pytest

from dmi_protocol import limits
from dmi_protocol.effects import Send
from dmi_protocol.events import Connected, Disconnected, Received, Stopping, Ticked
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.membership.settings import SwimSettings
from dmi_protocol.membership.swim import Swim
from dmi_protocol.messages import membership as say
from dmi_protocol.messages.membership import Ping, PingRequest, Rumor, Update
from tests.protocol.membership.little import Mesh

NOW = Instant(1)
ME, A, B, C = (NodeId(f"{number:016x}") for number in range(4))


def alone(others: int = 3) -> Swim:
    swim = Swim(ME, SwimSettings(), Random(1))
    swim.set_members(NOW, frozenset([A, B, C][:others]))
    return swim


def hear(swim: Swim, sender: NodeId, *updates: Update, now: Instant = NOW) -> list[object]:
    return list(swim.step(now, Received(sender, say.Gossip(updates))))


def test_a_quiet_mesh_stays_alive_and_nobody_accuses_anybody() -> None:
    mesh = Mesh(5)
    mesh.run(60_000)
    assert mesh.changes == []


@pytest.mark.parametrize("size", [4, 12, 24])
def test_the_load_of_a_node_does_not_grow_with_the_mesh(size: int) -> None:
    """SWIM, 3.2: one probe and one answer for each node and period, whatever the size."""
    periods = 20_000 // SwimSettings().period_ms
    mesh = Mesh(size)
    mesh.run(2_000 * size)  # each pair has introduced itself
    mesh.sent.clear()
    mesh.run(20_000)
    assert len(mesh.sent) <= 2.1 * periods * size


def test_everybody_is_probed_within_two_rounds() -> None:
    """SWIM, 4.3: round robin over a shuffled ring bounds the time to detection."""
    mesh = Mesh(8)
    mesh.run(15_000)
    for node in mesh.nodes:
        targets = {to for _, source, to, message in mesh.sent if source == node and isinstance(message, Ping)}
        assert targets == set(mesh.nodes) - {node}


@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_a_broken_connection_makes_a_dead_node_known_within_two_seconds(size: int) -> None:
    mesh = Mesh(size)
    mesh.run(5_000)
    gone = mesh.nodes[0]
    mesh.kill(gone)
    for node in mesh.swims:
        mesh.give(node, Disconnected(gone))
    mesh.run(2_600)
    assert mesh.seen(gone) == {"dead"}


def test_without_a_broken_connection_probes_find_it() -> None:
    mesh = Mesh(5)
    mesh.run(5_000)
    gone = mesh.nodes[0]
    mesh.kill(gone)
    mesh.run(2_500)
    assert mesh.seen(gone) == {"dead"}


def test_a_node_that_is_started_again_is_alive_at_once() -> None:
    mesh = Mesh(5)
    gone = mesh.nodes[0]
    mesh.kill(gone)
    for node in mesh.swims:
        mesh.give(node, Disconnected(gone))
    mesh.run(5_000)
    assert mesh.seen(gone) == {"dead"}
    mesh.start(gone)
    for node in list(mesh.swims):
        if node != gone:
            mesh.give(node, Connected(gone))
            mesh.give(gone, Connected(node))
    mesh.run(200)
    assert mesh.seen(gone) == {"alive"}


def test_a_connection_that_breaks_and_nothing_else_accuses_nobody() -> None:
    mesh = Mesh(5)
    mesh.run(3_000)
    for node in mesh.nodes:
        mesh.give(node, Disconnected(mesh.nodes[0]))
    mesh.run(5_000)
    assert mesh.changes == []


def test_others_reach_it_when_one_cannot() -> None:
    """SWIM, 3.1: the indirect probe goes round a link that is cut in one place."""
    mesh = Mesh(5)
    first, second = mesh.nodes[:2]
    mesh.lost = lambda source, target: {source, target} == {first, second}
    mesh.run(30_000)
    assert any(isinstance(message, PingRequest) for *_, message in mesh.sent)
    assert mesh.changes == []


def test_who_is_accused_refutes_with_a_higher_incarnation() -> None:
    """SWIM, 4.2."""
    swim = alone()
    outputs = hear(swim, A, Update(ME, "suspect", 0, A))
    told = [output.message for output in outputs if isinstance(output, Send)]
    assert told
    assert all(isinstance(m, say.Gossip) and Update(ME, "alive", 1) in m.updates for m in told)
    assert swim.refutations == 1
    hear(swim, B, Update(ME, "dead", 0, B))
    assert swim.refutations == 1, "that was refuted already"
    hear(swim, B, Update(ME, "dead", 7, B))
    assert swim.refutations == 2, "from before a restart of ours"


def test_older_news_changes_nothing() -> None:
    swim = alone()
    hear(swim, A, Update(B, "suspect", 3, A))
    assert swim.members[B].standing == "suspect"
    hear(swim, A, Update(B, "alive", 3))
    assert swim.members[B].standing == "suspect", "the same incarnation does not refute"
    hear(swim, A, Update(B, "alive", 4))
    hear(swim, C, Update(B, "dead", 3, C))
    assert (swim.members[B].standing, swim.members[B].incarnation) == ("alive", 4)


def test_confirmations_by_others_bring_the_verdict_nearer_and_repetitions_do_not() -> None:
    """Lifeguard: independent accusers count, one accuser twice does not."""
    swim = Swim(ME, SwimSettings(), Random(1))
    swim.set_members(NOW, [NodeId(f"{number:016x}") for number in range(1, 9)])
    suspect = NodeId(f"{8:016x}")
    swim._is_to_check = lambda: False  # type: ignore[method-assign]
    swim._probe_at = None  # only the suspicion is looked at here
    hear(swim, A, Update(suspect, "suspect", 0, A))
    first = swim.deadline()
    hear(swim, A, Update(suspect, "suspect", 0, A))
    assert swim.deadline() == first
    hear(swim, B, Update(suspect, "suspect", 0, B))
    second = swim.deadline()
    assert first is not None
    assert second is not None
    assert second < first
    hear(swim, C, Update(suspect, "suspect", 0, C), now=second)
    assert swim.members[suspect].standing == "dead"


def test_who_hears_of_a_suspicion_looks_at_once_and_confirms_it() -> None:
    """The verdict needs no further period of anybody's probes."""
    swim = alone()
    swim._probe_at = None
    output = swim.step(NOW, Received(A, say.Gossip((Update(B, "suspect", 0, A),))))
    looked = [each for each in output if isinstance(each, Send)]
    assert [each.to for each in looked if isinstance(each.message, Ping)] == [B]
    swim.step(Instant(NOW + 2 * SwimSettings().ping_ms), Ticked())
    assert swim.members[B].accusers == {A, ME}


def test_who_cannot_reach_anybody_doubts_itself_and_probes_less() -> None:
    """Lifeguard, local health: the overloaded node slows down instead of accusing the others."""
    mesh = Mesh(5)
    deaf = mesh.nodes[0]
    mesh.lost = lambda source, target: target == deaf
    mesh.run(20_000)
    mesh.sent.clear()
    mesh.run(20_000)
    pings = [1 for _, source, _, message in mesh.sent if source == deaf and isinstance(message, Ping)]
    assert len(pings) <= 20_000 // SwimSettings().period_ms // 3


def test_one_whose_own_health_is_bad_gives_answers_more_time() -> None:
    """Lifeguard, local health: the time-out of a probe stretches as its period does."""
    swim = alone()
    swim._probe_at = None
    for health in (0, 3):
        swim._health = health
        swim.step(NOW, Connected(B))
        assert swim.deadline() == NOW + (1 + health) * SwimSettings().ping_ms
        swim.step(NOW, Received(B, say.Ack(swim._sequence)))


def test_what_is_over_is_spread_by_nobody_any_more() -> None:
    swim = alone()
    swim.publish(NOW, "job:1", b"mine")
    swim.step(NOW, Received(B, say.Gossip((), (Rumor(B, "job:1", 4, b"theirs"), Rumor(B, "node", 1, b"facts")))))
    swim.retract("job:1")
    assert list(swim.rumors) == [(B, "node")]
    swim.step(NOW, Received(B, say.Gossip((), (Rumor(B, "job:1", 5, b"late"),))))
    swim.publish(NOW, "job:1", b"late")
    assert list(swim.rumors) == [(B, "node")]


def test_a_member_spreads_no_more_than_it_may() -> None:
    swim = alone()
    for number in range(limits.RUMORS + 5):
        swim.publish(NOW, f"job:{number}", b"mine")
        swim.step(NOW, Received(B, say.Gossip((), (Rumor(B, f"job:{number}", 1, b"theirs"),))))
    assert len(swim.rumors) == 2 * limits.RUMORS
    swim.step(NOW, Received(A, say.Gossip((), (Rumor(A, "large", 1, bytes(limits.RUMOR_BYTES + 1)),))))
    swim.step(NOW, Received(A, say.Gossip((), (Rumor(A, "k" * 200, 1, b""),))))
    assert len(swim.rumors) == 2 * limits.RUMORS


def test_one_that_hears_nothing_does_not_talk_the_others_into_anything() -> None:
    """It accuses everybody; they refute, and stay alive to one another."""
    mesh = Mesh(5)
    deaf = mesh.nodes[0]
    mesh.lost = lambda source, target: target == deaf
    mesh.run(40_000)
    for node in mesh.nodes[1:]:
        others = {mesh.swims[node].members[other].standing for other in mesh.nodes[1:] if other != node}
        assert "dead" not in others


def test_who_ends_in_good_order_has_left_at_once_and_comes_back() -> None:
    mesh = Mesh(5)
    mesh.run(2_000)
    gone = mesh.nodes[0]
    mesh.give(gone, Stopping())
    mesh.run(20)
    mesh.kill(gone)
    for node in mesh.swims:
        mesh.give(node, Disconnected(gone))
    mesh.run(2_000)
    assert mesh.seen(gone) == {"left"}
    assert all(not swim.is_alive(gone) for swim in mesh.swims.values())
    mesh.start(gone)
    for node in list(mesh.swims):
        if node != gone:
            mesh.give(node, Connected(gone))
    mesh.run(200)
    assert mesh.seen(gone) == {"alive"}


def test_rumors_reach_everybody_and_newer_ones_replace_them() -> None:
    mesh = Mesh(9)
    mesh.swims[mesh.nodes[0]].publish(mesh.now, "job:x", b"1")
    mesh.run(3_000)
    mesh.swims[mesh.nodes[0]].publish(mesh.now, "job:x", b"2")
    mesh.run(3_000)
    for node in mesh.nodes[1:]:
        assert mesh.swims[node].rumors[mesh.nodes[0], "job:x"].value == b"2"


def test_a_rumor_from_before_a_restart_does_not_hide_what_is_true_now() -> None:
    mesh = Mesh(3)
    first = mesh.nodes[0]
    for value in range(5):
        mesh.swims[first].publish(mesh.now, "node", b"%d" % value)
    mesh.run(3_000)
    mesh.kill(first)
    mesh.run(1_000)
    mesh.start(first).publish(mesh.now, "node", b"now")
    mesh.run(6_000)
    assert {swim.rumors[first, "node"].value for swim in mesh.swims.values()} == {b"now"}


@pytest.mark.parametrize("boot_count", [4, 5])
def test_a_home_put_back_from_an_old_copy_is_heard_all_the_same(boot_count: int) -> None:
    """It counts its lives from an older number, so what it spreads looks older than what is known of it, or as old."""
    mesh = Mesh(3)
    first = mesh.nodes[0]
    mesh.start(first, boot_count=5).publish(mesh.now, "node", b"before")
    mesh.run(3_000)
    assert {swim.rumors[first, "node"].value for swim in mesh.swims.values()} == {b"before"}
    mesh.kill(first)
    mesh.start(first, boot_count).publish(mesh.now, "node", b"now")
    mesh.run(3_000)
    assert {swim.rumors[first, "node"].value for swim in mesh.swims.values()} == {b"now"}


def test_probes_for_others_are_bounded() -> None:
    """Simulation, seed 53: a host that had stood still was asked hundreds of things at once."""
    swim = alone()
    for sequence in range(500):
        swim.step(NOW, Received(A, PingRequest(sequence, B)))
    swim.check()


def test_strangers_are_not_heard() -> None:
    stranger = NodeId("f" * 16)
    assert not any(isinstance(output, Send) for output in alone().step(NOW, Received(stranger, Ping(1))))

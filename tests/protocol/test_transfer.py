"""Chunks of a blob from everybody who has some: fast, whatever is lost, dies or lies."""

import random

import pytest

from dmi_protocol import limits
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.blobs import AskBlob, BlobHeld
from dmi_protocol.transfer import DIGEST_BYTES, STALLED_MS, Question, Transfer
from tests.protocol.swarm import BLOB, Swarm

A, B = NodeId("a"), NodeId("b")
CHUNKS = 2_000
"""A model of 500 MB."""


def longest(swarm: Swarm) -> int:
    swarm.run()
    assert all(host.done_at is not None for host in swarm.fetching()), [host.why for host in swarm.fetching()]
    return max(host.done_at or 0 for host in swarm.fetching())


@pytest.mark.parametrize("holders", [1, 2])
def test_four_nodes_at_once_take_hardly_longer_than_one(holders: int) -> None:
    one, four = Swarm(1, holders, 1, CHUNKS), Swarm(1, holders, 4, CHUNKS)
    at_best = one.size / one.rate
    assert longest(one) < 1.05 * at_best, "a link is full all the time"
    assert longest(four) < (1.5 if holders == 1 else 1.15) * at_best


def test_every_holder_gives_its_part() -> None:
    swarm = Swarm(2, 3, 1, CHUNKS)
    longest(swarm)
    given = [swarm.hosts[NodeId(f"h{n}")].sent for n in range(3)]
    assert sum(given) == CHUNKS
    assert min(given) > CHUNKS // 5


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_and_whoever_dies_or_lies(seed: int) -> None:
    swarm = Swarm(seed, 3, 4, 150)
    swarm.loss = 0.02
    swarm.hosts[NodeId("h1")].is_liar = True

    def die(name: str) -> None:
        swarm.hosts[NodeId(name)].is_dead = True

    swarm.at(swarm.chance.randrange(1_500), lambda: die("h2"))
    swarm.at(swarm.chance.randrange(1_500), lambda: die("f3"))
    swarm.run()
    living = [host for host in swarm.fetching() if not host.is_dead]
    assert [host.why for host in living if host.done_at is None] == []


def test_when_the_last_holder_dies_those_who_fetch_give_up() -> None:
    swarm = Swarm(3, 1, 2, CHUNKS)

    def die() -> None:
        swarm.hosts[NodeId("h0")].is_dead = True

    swarm.at(2_000, die)
    swarm.run()
    assert all(host.why for host in swarm.fetching())
    assert swarm.now < 2_000 + 3 * STALLED_MS


def held(count: int = 3, **more: object) -> BlobHeld:
    digests = b"".join(bytes([n]) * DIGEST_BYTES for n in range(count))
    return BlobHeld(BLOB, count * limits.BLOB_CHUNK_BYTES, **{"digests": digests, **more})  # type: ignore[arg-type]


def begun(*sources: NodeId) -> Transfer:
    transfer = Transfer(NodeId("me"), BLOB, sources, random.Random(0))
    transfer.questions(Instant(0))
    return transfer


def test_nobody_is_known() -> None:
    assert begun().failed(Instant(0))


def test_all_say_that_they_have_it_not() -> None:
    transfer = begun(A, B)
    transfer.answered(Instant(1), A, BlobHeld(BLOB, -1))
    assert not transfer.failed(Instant(1))
    transfer.answered(Instant(2), B, BlobHeld(BLOB, -1))
    assert transfer.failed(Instant(2))
    assert transfer.why == "b does not have it"


def test_who_contradicts_is_believed_no_more() -> None:
    transfer = begun(A, B)
    transfer.answered(Instant(1), A, held())
    transfer.answered(Instant(2), B, held(4))
    assert {question.source for question in transfer.questions(Instant(3))} == {A}
    transfer.answered(Instant(4), A, held(3, digests=b"x"))
    assert transfer.is_catalogued  # what is known already is not learned again


def test_a_source_that_is_still_reading_is_waited_for() -> None:
    transfer = begun(A)
    for second in range(100):
        transfer.answered(Instant(second * 1_000), A, held(digests=b""))
        assert not transfer.failed(Instant(second * 1_000))
        assert transfer.questions(Instant(second * 1_000 + 500)) == [Question(A, AskBlob(BLOB, 0))]


def test_an_empty_blob_is_done_when_its_size_is_known() -> None:
    transfer = begun(A)
    transfer.answered(Instant(1), A, held(0))
    assert transfer.is_done


def test_peers_are_asked_too_but_not_oneself() -> None:
    transfer = begun(A)
    transfer.answered(Instant(1), A, held(0, peers=(B, NodeId("me"))))
    assert [question.source for question in transfer.questions(Instant(2))] == [B]

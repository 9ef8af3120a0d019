"""Who computes what, and what becomes of it."""

from random import Random

import pytest

from dmi_protocol import limits
from dmi_protocol.identity import PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.serving.events import FleetTold, Full, Killed, Rejected, TooLate
from dmi_protocol.serving.router import Router, RouterSettings
from tests.protocol.serving.world import RTT_MS, Client, World

BATCHED = RouterSettings(max_batch=8, max_wait_ms=5)


def sizes(world: World, name: str = "r0") -> list[int]:
    return [len(pieces) for pieces in world.replicas[name].batches]


def is_answered(client: Client) -> bool:
    return client.answer is not None


def test_a_request_waits_for_nobody_while_a_replica_is_idle() -> None:
    world = World(0, BATCHED, replicas=1)
    client = world.ask()
    world.run(3 * RTT_MS)
    assert (is_answered(client), client.at) == (True, 3)


def test_requests_that_come_while_all_are_busy_go_together() -> None:
    world = World(0, BATCHED, replicas=1)
    world.replicas["r0"].row_ms = 3
    clients = [world.ask() for _ in range(5)]
    world.run(100)
    assert all(map(is_answered, clients))
    assert sizes(world) == [1, 4]


def test_nobody_waits_longer_than_max_wait_where_a_busy_replica_takes_one_more() -> None:
    world = World(0, BATCHED, replicas=1)
    world.replicas["r0"].row_ms = 50
    world.ask()
    world.run(1)
    late = world.ask()
    world.run(1 + BATCHED.max_wait_ms)
    later = world.ask()
    world.run(1_000)
    assert sizes(world) == [1, 1, 1], "what has waited long enough was on its way when the last one came"
    assert is_answered(late) and is_answered(later)  # noqa: PT018


def test_a_full_batch_waits_for_no_more() -> None:
    world = World(0, BATCHED, replicas=1)
    world.replicas["r0"].row_ms = 50
    for _ in range(1 + BATCHED.max_batch):
        world.ask()
    assert world.router.able == 1
    world.run(1)
    assert len(world.replicas["r0"].line) == 2


def test_unlike_requests_go_into_different_batches() -> None:
    world = World(0, BATCHED, replicas=1)
    clients = [world.ask(group=group) for group in ("a", "a", "b", "a", None, None)]
    world.run(1_000)
    assert all(map(is_answered, clients))
    for pieces in world.replicas["r0"].batches:
        assert len({world.clients[piece.request].arrived.group for piece in pieces}) == 1
        assert world.clients[pieces[0].request].arrived.group is not None or len(pieces) == 1


def test_exact_means_alone() -> None:
    world = World(0, RouterSettings(8, 5, exact=True), replicas=1)
    for _ in range(6):
        world.ask()
    world.run(1_000)
    assert sizes(world) == [1] * 6


def test_a_large_request_is_cut_and_put_together_again() -> None:
    world = World(0, BATCHED, replicas=2)
    client = world.ask(rows=20)
    world.run(1_000)
    assert is_answered(client)
    assert sorted(client.computed) == [0, 1, 2]
    rows = sorted(piece.rows for replica in world.replicas.values() for pieces in replica.batches for piece in pieces)
    assert rows == [4, 8, 8]


def test_a_request_without_rows_is_answered() -> None:
    world = World(0, BATCHED, replicas=1)
    client = world.ask(rows=0)
    world.run(100)
    assert is_answered(client)


def test_what_a_lost_replica_had_in_hand_is_computed_elsewhere() -> None:
    world = World(0, BATCHED, replicas=2)
    for replica in world.replicas.values():
        replica.row_ms = 20
    clients = [world.ask() for _ in range(12)]
    world.run(5)
    world.kill("r0")
    world.run(2_000)
    assert all(map(is_answered, clients))


@pytest.mark.parametrize("kills_whole", [True, False])
def test_a_poisonous_request_is_refused_after_two_deaths_and_its_neighbours_are_answered(*, kills_whole: bool) -> None:
    world = World(0, BATCHED, replicas=3, kills_whole=kills_whole)
    for replica in world.replicas.values():
        replica.row_ms = 10
    poison = [world.ask(is_poison=place == 6) for place in range(20)][6]
    world.run(10_000)
    assert poison.refusal == Killed(2)
    assert world.deaths == {poison.arrived.request: 2}
    assert all(is_answered(client) for client in world.clients.values() if not client.is_poison)


def test_two_poisonous_requests_at_once() -> None:
    world = World(3, BATCHED, replicas=2)
    clients = [world.ask(is_poison=place in {2, 5}) for place in range(12)]
    world.run(20_000)
    assert [client.refusal for client in clients if client.is_poison] == [Killed(2), Killed(2)]
    assert all(is_answered(client) for client in clients if not client.is_poison)


def test_what_the_model_does_not_take_is_that_requests_fault_alone() -> None:
    world = World(0, BATCHED, replicas=1)
    clients = [world.ask(is_bad=place == 3) for place in range(8)]
    world.run(100)
    assert [client.refusal for client in clients if client.is_bad] == [Rejected("no")]
    assert all(is_answered(client) for client in clients if not client.is_bad)


def test_a_silent_replica_is_not_waited_for_and_is_used_again_when_it_speaks() -> None:
    world = World(0, BATCHED, replicas=2)
    world.replicas["r0"].is_mute = world.replicas["r1"].is_mute = True
    client = world.ask()
    world.run(100)
    (had,) = [name for name, replica in world.replicas.items() if replica.batches]
    other = {"r0": "r1", "r1": "r0"}[had]
    world.replicas[other].is_mute = False
    world.run(limits.REPLICA_SILENT_MS + 1_000)
    assert is_answered(client)
    world.replicas[had].is_mute = False
    world.run(world.now + 1_000)
    assert world.router.able == 2


def test_a_request_that_is_too_late_is_refused_and_not_computed_any_more() -> None:
    world = World(0, BATCHED, replicas=1)
    world.replicas["r0"].row_ms = 1_000
    world.ask(within_ms=5_000)
    late = world.ask(within_ms=500)
    later = world.ask(within_ms=20, group="h")
    world.run(10_000)
    assert (late.refusal, late.at) == (TooLate(has_replica=True), 500)
    assert (later.refusal, later.at) == (TooLate(has_replica=True), 20)
    assert [piece.request for pieces in world.replicas["r0"].batches for piece in pieces] == [1, 2]


def test_without_a_replica_requests_wait_for_one() -> None:
    world = World(0, BATCHED, replicas=0)
    late, client = world.ask(within_ms=300), world.ask()
    world.run(1_000)
    assert late.refusal == TooLate(has_replica=False)
    world.join("r0")
    world.run(1_100)
    assert is_answered(client)


def test_abandoned_requests_are_not_computed() -> None:
    world = World(0, BATCHED, replicas=1)
    world.replicas["r0"].row_ms = 100
    world.ask()
    gone = world.ask(group="h")
    world.abandon(gone)
    world.run(1_000)
    assert sizes(world) == [1]
    assert world.router.waiting == 0


def test_beyond_its_bounds_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GATEWAY_REQUESTS", 3)
    world = World(0, BATCHED, replicas=0)
    clients = [world.ask() for _ in range(5)]
    assert [client.refusal for client in clients] == [None, None, None, Full(), Full()]
    monkeypatch.setattr(limits, "GATEWAY_BYTES", 2)
    monkeypatch.setattr(limits, "GATEWAY_REQUESTS", 100)
    assert world.ask().refusal == Full()


def test_the_less_loaded_replica_is_asked() -> None:
    world = World(0, BATCHED, replicas=2)
    world.replicas["r0"].row_ms = 100
    for _ in range(300):
        world.later(world.chance.randrange(3_000), lambda: _one(world))
    world.run(10_000)
    slow, quick = (sum(map(len, world.replicas[name].batches)) for name in ("r0", "r1"))
    assert slow < quick / 2
    assert all(map(is_answered, world.clients.values()))


def test_a_replica_that_leaves_finishes_what_it_has() -> None:
    world = World(0, BATCHED, replicas=1)
    replica = world.replicas["r0"]
    replica.row_ms = 50
    client = world.ask()
    world.run(5)
    world.join("r1")
    world.remove("r0")
    world.replicas["r0"] = replica  # it lives until it has finished
    world.run(100)
    assert is_answered(client)
    assert not world.replicas["r1"].batches


def test_no_answer_mixes_two_versions() -> None:
    world = World(0, BATCHED, replicas=2)
    for replica in world.replicas.values():
        replica.row_ms = 10
    world.versions = ("m:2", "m:1")
    client = world.ask(rows=80)
    world.run(200)
    world.swap("r0", "m:2")
    world.run(5_000)
    assert client.answer is not None
    assert len(set(client.computed.values())) == 1


def test_a_version_that_is_named_computes_and_no_other() -> None:
    world = World(0, BATCHED, replicas=2)
    world.swap("r1", "m:2")
    clients = [world.ask(versions=(f"m:{1 + nth % 2}",)) for nth in range(20)]
    late = world.ask(versions=("m:9",), within_ms=50)
    world.run(1_000)
    assert [client.answer and client.answer.version for client in clients] == ["m:1", "m:2"] * 10
    assert late.refusal is not None, "nobody has it, and nobody waited behind it"


def test_a_replica_that_has_swapped_meanwhile_declines_and_nobody_is_blamed() -> None:
    world = World(0, BATCHED, replicas=2)
    for replica in world.replicas.values():
        replica.row_ms = 20
    clients = [world.ask() for _ in range(8)]
    world.replicas["r0"].version = "m:2"  # the gateway hears of it later
    world.run(3_000)
    assert all(map(is_answered, clients))


@pytest.mark.parametrize("seed", [*range(30), *(pytest.param(seed, marks=pytest.mark.deep) for seed in range(30, 300))])
def test_whatever_happens_each_request_has_one_end_in_time(seed: int) -> None:
    """Replicas die, fall silent, come and go, and change their version, while clients ask, hang up and poison."""
    chance = Random(seed)
    settings = RouterSettings(chance.choice([1, 4, 8]), chance.choice([0, 5, 20]), exact=chance.random() < 0.2)
    world = World(seed, settings, chance.choice([1, 2, 3]), kills_whole=chance.random() < 0.5)
    for at in sorted(chance.randrange(20_000) for _ in range(120)):
        world.later(at, lambda: _ask(world, chance))
    for at in sorted(chance.randrange(20_000) for _ in range(12)):
        world.later(at, lambda: _trouble(world, chance))
    world.later(21_000, lambda: _heal(world))
    world.run(80_000)
    assert world.router.waiting == 0
    for client in world.clients.values():
        assert client.is_abandoned or client.answer is not None or client.refusal is not None
        assert client.at <= client.arrived.until
        pieces = 1 + max(client.arrived.rows - 1, 0) // settings.max_batch
        assert world.deaths[client.arrived.request] <= pieces + 2, "what is under way already cannot be called back"
        if client.is_poison:
            assert client.answer is None
        if client.is_bad:
            assert isinstance(client.refusal, Rejected | TooLate | Killed) or client.is_abandoned
        if isinstance(client.refusal, Rejected):
            assert client.is_bad


def _one(world: World) -> None:
    world.ask()


def _come(world: World, name: str) -> None:
    world.join(name)


def _ask(world: World, chance: Random) -> None:
    kind = chance.random()
    client = world.ask(
        rows=chance.choice([0, 1, 1, 1, 2, 8, 30]),
        group=chance.choice(["a", "a", "a", "b", None]),
        within_ms=chance.choice([200, 30_000, 30_000]),
        is_poison=kind < 0.03,
        is_bad=0.03 <= kind < 0.06,
    )
    if chance.random() < 0.1:
        world.later(chance.randrange(100), lambda: world.abandon(client))


def _trouble(world: World, chance: Random) -> None:
    names = sorted(world.replicas)
    what = chance.random()
    if what < 0.35 and names:
        name = chance.choice(names)
        world.kill(name)
        world.later(chance.randrange(5_000), lambda: _come(world, f"{name}+"))
    elif what < 0.6 and names:
        replica = world.replicas[chance.choice(names)]
        replica.is_mute = True
        world.later(chance.randrange(8_000), lambda: setattr(replica, "is_mute", False))
    elif what < 0.7 and len(names) > 1:
        world.remove(chance.choice(names))
    elif what < 0.85:
        world.join(f"n{world.now}", row_ms=chance.choice([0.2, 1, 5]))
    else:
        for name in names:
            world.swap(name, f"m:{world.now}")


def _heal(world: World) -> None:
    for replica in world.replicas.values():
        replica.is_mute = False
    world.join("healed", version=world.versions[0])
    for name in list(world.replicas):
        world.swap(name, world.versions[0])


def test_what_it_decides_does_not_depend_on_the_order_that_a_set_has_in_this_process() -> None:
    names = [PublicKey(f"r{nth}") for nth in range(20)]
    router = Router(BATCHED, Random(0))
    router.step(Instant(0), FleetTold(frozenset(reversed(names))))
    assert list(router.known) == sorted(names)


def test_a_large_request_is_cut_as_it_is_handed_out() -> None:
    """Its rows may be empty, so it may come in a few bytes."""
    world = World(0, RouterSettings(max_batch=1, max_wait_ms=5), replicas=2)
    client = world.ask(rows=limits.REQUEST_ROWS)
    world.run(50)
    request = world.router._requests[client.arrived.request]
    assert 0 < len(request.waiting) <= limits.PIECES_AHEAD
    assert len(request.pieces) < 1_000
    assert not is_answered(client)


def test_all_of_a_large_request_is_computed_once_and_others_come_between() -> None:
    world = World(0, BATCHED, replicas=2)
    rows = BATCHED.max_batch * (limits.PIECES_AHEAD * 3) + 5
    large = world.ask(rows=rows)
    world.run(3)
    small = world.ask()
    world.run(20_000)
    assert is_answered(large)
    assert is_answered(small)
    assert small.at < large.at
    batches = [pieces for replica in world.replicas.values() for pieces in replica.batches]
    mine = sorted((p.first, p.rows) for pieces in batches for p in pieces if p.request == large.arrived.request)
    assert [first for first, _ in mine] == list(range(0, rows, BATCHED.max_batch))
    assert sum(count for _, count in mine) == rows

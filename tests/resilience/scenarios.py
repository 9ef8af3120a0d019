"""The scenarios of the table: each does its harm once, while a training runs on five nodes, and returns."""

from tests.hosts import faults
from tests.mesh.local import until
from tests.resilience.scene import Scenario, Scene

STUCK_S = 90.0
"""A one-way cut that has not been mended by then is a failure, and is taken away so that the run has an end."""
PARTITION_S = 10.0
_BUCKET_BYTES = 4 * 1024 * 1024


def kill_role(scene: Scene, role: str) -> None:
    """(a), (b)"""
    victim = scene.pick(role)
    scene.look_from_outside(scene.place(victim))
    scene.strike()
    faults.kill(victim["pid"])


def kill_worker(scene: Scene) -> None:
    """(a)"""
    kill_role(scene, "worker")


def kill_server(scene: Scene) -> None:
    """(b)"""
    kill_role(scene, "server")


def kill_node(scene: Scene, index: int) -> None:
    """As a power cut would."""
    scene.look_from_outside(index)
    scene.strike()
    scene.mesh.kill(index)


def kill_coordinator(scene: Scene) -> None:
    """(c), (d): on which nodes the job is decides what else dies with it."""
    index = scene.coordinator()
    mine = sorted(r["role"] for r in scene.watch.node.roles() if scene.place(r) == index and r["job"] == scene.job)
    scene.note(f"it was the coordinator{''.join(f' and a {role}' for role in mine)}")
    kill_node(scene, index)


def kill_two_nodes(scene: Scene) -> None:
    """(e)"""
    first, second = scene.chance.sample(sorted(scene.playing()), 2)
    scene.look_from_outside(first, second)
    for index in (first, second):
        scene.strike()
        scene.mesh.kill(index)
        if index == first:
            faults.last(10)


def part(scene: Scene, minority: set[int]) -> None:
    """Two on their own for ten seconds; they must say so, and follow again."""
    scene.look_from_outside(*minority)
    majority = set(range(scene.mesh.size)) - minority
    scene.strike()
    scene.hosts.part(majority, minority)
    until(lambda: not any(scene.has_quorum(index) for index in minority), PARTITION_S, "the minority has no quorum")
    faults.last(max(0.0, PARTITION_S - scene.since_strike()))
    scene.hosts.heal()
    healed = scene.since_strike()
    until(lambda: all(scene.has_quorum(index) for index in minority), 60, "the minority follows again")
    scene.note(f"the minority followed {scene.since_strike() - healed:.1f} s after healing")


def part_coordinator(scene: Scene) -> None:
    """(f): the coordinator and one more on the side of two."""
    index = scene.coordinator()
    other = scene.chance.choice([each for each in range(scene.mesh.size) if each != index])
    part(scene, {index, other})


def part_everything_of_the_job(scene: Scene) -> None:
    """(f): all workers, and both copies of a shard."""
    mine = scene.playing()
    if len(mine) > 2:
        scene.note(f"the job is on {len(mine)} nodes")
        mine = {scene.place(role) for role in faults.roles(scene.watch.node, scene.job, "worker")}
    part(scene, set(sorted(mine)[:2]))


def pause_server(scene: Scene) -> None:
    """(g)"""
    victim = scene.pick("server")
    scene.look_from_outside(scene.place(victim))
    scene.strike()
    if not faults.pause(victim["pid"], 5):
        scene.note("the server was ended meanwhile")


def add_node(scene: Scene) -> None:
    """(h)"""
    scene.strike()
    index = scene.mesh.add()
    until(lambda: faults.is_answering(scene.mesh, index), 30, "the new node is in")
    took = scene.watch.role_on(scene.mesh.node(index).name, 20)
    scene.note("the new node took up work" if took else "the new node had no work of this job within 20 s")


def kill_everybody(scene: Scene) -> None:
    """(i)"""
    scene.strike()
    for index in range(scene.mesh.size):
        scene.mesh.kill(index)
    for index in range(scene.mesh.size):
        scene.mesh.start(index)


def cut_one_way(scene: Scene) -> None:
    """(j): from a primary to its backup; where there are no backups, to a worker on another node."""
    primary = scene.pick("server")
    shards = {shard["shard"] for shard in primary["shards"] if shard["primary"]}
    backups = [
        role
        for role in scene.watch.node.roles()
        if role["job"] == scene.job and any(s["shard"] in shards and not s["primary"] for s in role["shards"])
    ]
    if not backups:
        scene.note("no backups, so the cut was between a server and a worker")
        backups = [w for w in faults.roles(scene.watch.node, scene.job, "worker") if w["node"] != primary["node"]]
    source, target = scene.place(primary), scene.place(scene.chance.choice(backups))
    scene.look_from_outside(source, target)
    scene.strike()
    scene.hosts.block(source, target)
    try:
        scene.watch.until(lambda _: scene.moves_again(), STUCK_S, "a step with the cut in place")
    except AssertionError:
        scene.note(f"no step within {STUCK_S:.0f} s; the cut was taken away")
        scene.hosts.unblock(source, target)


def kill_between_buckets(scene: Scene) -> None:
    """(k): the worker's cable is slow, and when it has carried one and a half buckets of a step the worker dies."""
    servers = {scene.place(role) for role in faults.roles(scene.watch.node, scene.job, "server")}
    workers = faults.roles(scene.watch.node, scene.job, "worker")
    victim = next(role for role in workers if scene.place(role) not in servers)
    index = scene.place(victim)
    scene.look_from_outside(index)
    scene.hosts.slow(index, 50)
    until(lambda: scene.is_quiet(index), 30, "its cable is quiet: the worker computes")
    idle = scene.hosts.sent_bytes(index)
    until(lambda: scene.hosts.sent_bytes(index) - idle > 1.5 * _BUCKET_BYTES, 30, "one and a half buckets are sent")
    scene.strike()
    faults.kill(victim["pid"])
    scene.hosts.fast(index)


def pull_the_cable(scene: Scene) -> None:
    """A link that silently goes down, for good."""
    index = scene.place(scene.pick("server"))
    scene.look_from_outside(index)
    scene.strike()
    scene.hosts.unplug(index)


def fill_the_disk(scene: Scene) -> None:
    """Of a voter, for twenty seconds."""
    index = next(iter(SMALL_DISK))
    scene.look_from_outside(index)
    scene.strike()
    scene.disk(index).fill()
    faults.last(20)
    scene.note("the node was up" if faults.is_up(scene.mesh, index) else "the node had ended")
    scene.disk(index).empty()
    if not faults.is_up(scene.mesh, index):
        scene.mesh.start(index)  # as systemd would
    until(lambda: faults.is_answering(scene.mesh, index), 30, "the node is back")


def turn_the_clock(scene: Scene) -> None:
    """A day on, then two back, on every node's daemon."""
    assert scene.clock is not None
    scene.strike()
    scene.clock.jump(86_400)
    faults.last(3)
    scene.clock.jump(-86_400)


SMALL_DISK = {1: 64}
SCENARIOS = {
    "a": Scenario("`kill -9` of a worker", kill_worker),
    "b": Scenario("`kill -9` of a server's primary", kill_server),
    "c": Scenario("`kill -9` of the coordinator", kill_coordinator, flags=("--workers", "2", "--servers", "2")),
    "d": Scenario("`kill -9` of a node that is coordinator, worker and server", kill_coordinator),
    "e": Scenario("two nodes, 10 s apart", kill_two_nodes),
    "f": Scenario("partition 2\\|3 for 10 s, the coordinator among the two", part_coordinator, "hosts"),
    "f2": Scenario(
        "the same, all workers and copies among the two",
        part_everything_of_the_job,
        "hosts",
        flags=("--workers", "2", "--servers", "2"),
    ),
    "g": Scenario("SIGSTOP of a server for 5 s", pause_server),
    "h": Scenario("a node added in mid-run", add_node),
    "i": Scenario("every node killed and started again", kill_everybody),
    "j": Scenario("a one-way cut between a primary and its backup", cut_one_way, "hosts"),
    "k": Scenario(
        "a kill between the pushes of two buckets",
        kill_between_buckets,
        "hosts",
        flags=("--workers", "3", "--servers", "1"),
        script="wide",
    ),
    "big": Scenario("`kill -9` of a primary of AlexNet, 57 million parameters", kill_server, script="alexnet"),
    "bign": Scenario("`kill -9` of a node that is everything to AlexNet", kill_coordinator, script="alexnet"),
    "link": Scenario("a cable pulled for good", pull_the_cable, "hosts"),
    "disk": Scenario("a voter's disk full for 20 s", fill_the_disk, "hosts", disk_mib=SMALL_DISK),
    "clock": Scenario("wall clocks jump a day on and two back", turn_the_clock, "clock"),
}

"""What people do with a mesh while it burns: submit, cancel, add models, invite, join, expel."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from dmi_protocol.cluster.command import (
    AddModel,
    BatchSpec,
    Cancel,
    Command,
    CutModel,
    DeploymentSpec,
    Invite,
    Remove,
    RemoveModel,
    SetVersions,
    Submit,
    TrainingSpec,
)
from dmi_protocol.cluster.models import ModelVersion
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import Answer
from dmi_protocol.events import BlobPinned, JoinAsked
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import ENDED
from dmi_protocol.kinds.training.placing import wanted_nodes
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.control import Introduced, Join
from dmi_protocol.messages.roles import Versions
from dmi_protocol.model import ModelContent, ModelFile, ModelRef, ModelStage
from dmi_protocol.peer import Me
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import DiskFull, NoCoordinator, NoQuorum, TimedOut
from tests.simulation.node import Node
from tests.simulation.process import Process
from tests.simulation.world import BUNDLE, World, me

_MOST_NODES = 7
_BATCHES = 0.3
"""Of all jobs."""
_DEPLOYMENTS = 0.15
_SCALES: tuple[tuple[int | None, int, int | None], ...] = (
    (None, 1, None),
    (1, 1, None),
    (3, 1, None),
    (6, 1, None),
    (None, 1, 4),
    (None, 0, 2),
)
"""How many replicas; and where that is None, perhaps the fewest and the most of those that follow the load."""
_TRAVEL = 0.4
"""Of those, the ones whose inputs travel."""


class Workload:
    """Asks something every now and then, of a random node, until ``until_ms``."""

    def __init__(self, world: World, until_ms: int) -> None:
        self._world = world
        self._until_ms = until_ms
        self._count = 0
        self.jobs: list[JobId] = []
        self._keys: dict[RequestId, PublicKey] = {}

    def begin(self) -> None:
        """Let it run."""
        self._world.clock.later(500, self._act)

    def _act(self) -> None:
        world, random = self._world, self._world.random
        if world.clock.now >= self._until_ms:
            return
        world.clock.later(100 + int(2_400 * random.random()), self._act)
        nodes = world.up()
        if not nodes:
            return
        node = random.choice(nodes)
        what = random.random()
        if what < 0.22:
            self.submit(node)
        elif what < 0.35 and self.jobs:
            world.ask(node, Cancel(self._request("cancel"), random.choice(self.jobs)))
        elif what < 0.45:
            self._invite(node)
        elif what < 0.50:
            self._expel(node)
        elif what < 0.56:
            self.add_model(node)
        elif what < 0.58:
            self._remove_model(node)
        elif what < 0.66:
            self._set_versions(node)
        elif what < 0.72:
            self._cut_any(node)
        else:
            for _ in range(random.choice([1, 1, 3])):
                self.chat(node)

    def _request(self, what: str) -> RequestId:
        self._count += 1
        return RequestId(f"{what}-{self._count}")

    def chat(self, node: Node) -> None:
        """Have something agreed that does nothing."""
        if node.is_up:
            self._world.ask(node, Cancel(self._request("nothing"), JobId("nothing")))

    def submit(self, node: Node) -> RequestId:
        """A training, or a batch inference or a deployment where there is a model."""
        kind = self._world.random.random()
        versions = [v for known in self._world.agreement.state.models.values() for v in known.values()]
        if kind < _DEPLOYMENTS and versions:
            return self.serve(node, self._world.random.choice(versions))
        wants_batch = kind < _DEPLOYMENTS + _BATCHES
        made = self.batch(self._world.random.choice(versions)) if wants_batch and versions else self._training()
        spec = replace(made, cpus=self._cpus(), memory=self._memory())
        holders = self._holders(node, *(spec.packs if isinstance(spec, BatchSpec) else ()))
        command = Submit(self._request("submit"), spec, BUNDLE, holders)
        self._world.ask(node, command, then=self._submitted)
        return command.request

    def serve(self, node: Node, model: ModelVersion, *, shared: bool = True) -> RequestId:
        """On few or many processes, which may ask for a share of their nodes."""
        random = self._world.random
        replicas, least, most = random.choice(_SCALES)
        cuts = [(), *model.cuts.values()]
        spec = DeploymentSpec(
            model.name,
            ModelRef(model.id, replace(model.content, stages=cuts[-1] if random.random() < 0.8 else cuts[0])),
            replicas=replicas,
            least=least,
            most=most,
            gateways=random.choice([None, 1, 2]),
            max_batch=random.choice([1, 8, 32]),
            exact=random.random() < 0.2,
            **self._following(),
            cpus=self._cpus() if shared else None,
            memory=self._memory() if shared else None,
        )
        request = self._request("serve")
        self._world.ask(node, Submit(request, spec, BlobHash(""), ()), then=self._submitted)
        return request

    def _following(self) -> dict[str, Any]:
        """Sometimes the checkpoints of a training."""
        random, state = self._world.random, self._world.agreement.state
        trainings = [j.id for j in state.jobs.values() if isinstance(j, TrainingJob) and j.state not in ENDED]
        if not trainings or random.random() < 0.4:
            return {}
        return {"follow": random.choice(trainings), "every": random.choice([1, 1, 2])}

    def _cpus(self) -> int | None:
        return self._world.random.choice([None, None, 1, 2])

    def _memory(self) -> int | None:
        return self._world.random.choice([None, None, 1, 3])

    def _set_versions(self, node: Node) -> None:
        """Of a deployment: another version, if there is one, sometimes with a canary beside it."""
        state, random = self._world.agreement.state, self._world.random
        jobs = [job for job in state.jobs.values() if isinstance(job, DeploymentJob) and job.state not in ENDED]
        if not jobs:
            return
        job = random.choice(jobs)
        known = list(state.models.get(job.spec.name, {}).values())
        others = [ref for ref in _refs(known, job.stages) if ref.id != job.versions.current.id]
        if not others:
            self._make_another(node, job, known)
            return
        current, *more = random.sample(others, min(len(others), random.choice([1, 1, 2])))
        versions = Versions(current, more[0] if more else None, share=30 if more else 0)
        self._world.ask(node, SetVersions(self._request("versions"), job.id, versions, random.random() < 0.2))

    def _make_another(self, node: Node, job: DeploymentJob, known: Sequence[ModelVersion]) -> None:
        """A version that this deployment could compute with, too."""
        uncut = [version for version in known if job.stages > 1 and job.stages not in version.cuts]
        if uncut:
            self._cut_model(node, self._world.random.choice(uncut), job.stages)
        else:
            self.add_model(node, job.spec.name)

    def batch(self, model: ModelVersion) -> BatchSpec:
        """Few inputs, in a few or many slices, on all nodes or on some."""
        random = self._world.random
        spec = BatchSpec(
            "batch",
            ModelRef(model.id, model.content),
            inputs=random.choice([1, 7, 16, 24]),
            slice_inputs=random.choice([1, 2, 8]),
            replicas=random.choice([None, None, 1, 2]),
            per_node=random.choice([1, 1, 2]),
        )
        return replace(spec, packs=self._packs(spec.slices)) if random.random() < _TRAVEL else spec

    def _packs(self, slices: int) -> tuple[BlobHash, ...]:
        """Inputs that travel; two slices may have the same ones."""
        salt, random = self._world.random.randrange(1 << 30), self._world.random
        names = [f"inputs-{salt}-{random.randrange(2 * slices)}" for _ in range(slices)]
        return tuple(BlobHash(hashlib.sha256(name.encode()).hexdigest()) for name in names)

    def _training(self) -> TrainingSpec:
        """A few small steps; sometimes with more workers than leaves."""
        random = self._world.random
        return TrainingSpec(
            "job",
            "train.py",
            (str(random.choice([2, 6, 10, 40])),),
            workers=random.choice([1, 2, 3, 4]),
            backups=random.choice([None, None, 0, 2]),
            servers=random.choice([1, 2, 3]),
            leaves=random.choice([1, 2, 4, 8]),
        )

    def _holders(self, node: Node, *packs: BlobHash) -> tuple[NodeId, ...]:
        """The files are on the node that was asked, and on another one that is up."""
        others = [other for other in self._world.up() if other is not node]
        chosen = [node, *self._world.random.sample(others, min(1, len(others)))]
        for holder in chosen:
            holder.blobs |= {blob: {} for blob in (BUNDLE, *packs)}
        return tuple(holder.me.node for holder in chosen)

    # Models

    def add_model(self, node: Node, name: str = "") -> None:
        """Sometimes what is there already, under this name or another one; it is on two nodes, as files of jobs are."""
        random = self._world.random
        blob = BlobHash(hashlib.sha256(f"weights-{random.randrange(4)}".encode()).hexdigest())
        chosen = [node, *random.sample([n for n in self._world.up() if n is not node] or [node], 1)]
        for holder in chosen:
            holder.give(BlobPinned(blob))
        holders = tuple(dict.fromkeys(chosen))
        self._world.clock.later(
            5 + int(500 * random.random()), self._stored, holders, [h.boot_count for h in holders], blob, name
        )

    def _stored(self, holders: Sequence[Node], boot_counts: Sequence[int], blob: BlobHash, name: str) -> None:
        """The weights are on these disks, unless somebody crashed meanwhile, or has not heard yet that they are to stay."""
        if [holder.boot_count for holder in holders] != list(boot_counts) or any(h.is_writing for h in holders):
            return
        for holder in holders:
            holder.blobs[blob] = {}
        content = ModelContent("exported", (ModelFile("model", blob, 1),))
        name = name or self._world.random.choice(["one", "two"])
        nodes = tuple(holder.me.node for holder in holders)
        self._world.ask(holders[0], AddModel(self._request("model"), name, content, nodes, 1))

    def _cut_any(self, node: Node) -> None:
        """Any version, into two or three stages."""
        random = self._world.random
        known = [v for versions in self._world.agreement.state.models.values() for v in versions.values()]
        if known:
            self._cut_model(node, random.choice(known), random.choice([2, 3]))

    def _cut_model(self, node: Node, version: ModelVersion, count: int) -> None:
        """Its stages are on two nodes, as a model is."""
        random = self._world.random
        names = [f"{version.digest}-{count}-{stage}" for stage in range(count)]
        blobs = [BlobHash(hashlib.sha256(name.encode()).hexdigest()) for name in names]
        chosen = [node, *random.sample([n for n in self._world.up() if n is not node] or [node], 1)]
        for holder in chosen:
            for blob in blobs:
                holder.give(BlobPinned(blob))
        holders = tuple(dict.fromkeys(chosen))
        counts = [holder.boot_count for holder in holders]
        self._world.clock.later(5 + int(500 * random.random()), self._cut, holders, counts, blobs, version)

    def _cut(
        self, holders: Sequence[Node], boot_counts: Sequence[int], blobs: Sequence[BlobHash], version: ModelVersion
    ) -> None:
        if [holder.boot_count for holder in holders] != list(boot_counts) or any(h.is_writing for h in holders):
            return
        for holder in holders:
            holder.blobs |= {blob: {} for blob in blobs}
        stages = tuple(ModelStage((ModelFile("weights", blob, 1),), n, n + 1, 1) for n, blob in enumerate(blobs))
        nodes = tuple(holder.me.node for holder in holders)
        self._world.ask(holders[0], CutModel(self._request("cut"), version.id, version.digest, stages, nodes))

    def _remove_model(self, node: Node) -> None:
        name = self._world.random.choice(["one", "two"])
        self._world.ask(node, RemoveModel(self._request("rm"), name, self._world.random.choice([None, 1, 2])))

    def _submitted(self, node: Node, answer: Answer) -> None:
        if answer.refusal is None:
            self.jobs.append(JobId(answer.value))

    # Members come and go

    def _invite(self, node: Node) -> None:
        if len(self._world.nodes) >= _MOST_NODES:
            return
        number = self._count
        key = PublicKey(f"invitation-{number}".ljust(40, "."))
        request = self._request("invite")
        self._keys[request] = key
        self._world.ask(node, Invite(request, key, 1_000), then=self._invited)

    def _invited(self, node: Node, answer: Answer) -> None:
        """Two strangers hold the same invitation, and turn to different nodes: one gets in."""
        key = self._keys.get(answer.request)
        nodes = self._world.up()
        if answer.refusal is not None or key is None or not nodes:
            return
        for name in (f"n{len(self._world.nodes)}", f"n{90 + self._count % 10}"):
            self._knock(me(name), key)

    def _knock(self, who: Me, key: PublicKey) -> None:
        """A stranger asks any node, and another one when that does not answer."""
        request = RequestId(f"join/{key}/{who.name}")
        known = self._world.told.get(request)
        if known is not None and not isinstance(known.refusal, DiskFull | NoQuorum | NoCoordinator | TimedOut):
            return
        nodes = self._world.up()
        if nodes:
            via = self._world.random.choice(nodes)
            join = Join(who.name, who.address, who.public_key, witness=int(who.name[1:]) % 3 == 0)
            self._world.expect(via, request, 11_000, self._joined)
            via.give(JoinAsked(request, key, join, 0))
        self._world.clock.later(12_000, self._knock, who, key)

    def _joined(self, node: Node, answer: Answer) -> None:
        name = answer.request.rpartition("/")[2]
        if answer.refusal is not None or node.peer is None or node.peer.state is None or name in self._world.nodes:
            return
        members = node.peer.state.members.values()
        introduced = [Introduced(m.node, m.name, m.address, m.public_key) for m in members if m.name != name]
        self._world.add(me(name), Restored(), introduced)
        self._world.counters["joins"] += 1

    def _expel(self, node: Node) -> None:
        """Never one of the first five, so that a universe keeps its size."""
        late = [other for other in self._world.nodes.values() if int(other.name[1:]) >= 5]
        if not late or not self._world.random.random() < 0.5:
            return
        gone = self._world.random.choice(late)
        command: Command = Remove(self._request("remove"), gone.me.node)
        self._world.ask(node, command, then=self._expelled)

    def _expelled(self, node: Node, answer: Answer) -> None:
        self._world.counters["expelled"] += answer.refusal is None

    # Role processes

    def living(self) -> list[Process]:
        """The role processes that live."""
        return [process for process in self._world.sockets.processes.values() if process.is_alive]

    def unfinished(self) -> list[JobId]:
        """The jobs that have not ended, as the twin knows them, but for those that wait for room with good reason; of
        deployments, which never end, those that do not serve."""
        state = self._world.agreement.state
        found = []
        for job in state.jobs.values():
            if job.state in ENDED or (isinstance(job, DeploymentJob) and _serves(job)):
                continue
            if not _waits_for_room(state, job):
                found.append(job.id)
            else:
                self._world.counters["jobs that wait for room"] += 1
        return found


def _serves(job: DeploymentJob) -> bool:
    """With everybody who should."""
    return job.serves and len(job.endpoints) == len(job.placements)


def _waits_for_room(state: ClusterState, job: AnyJob) -> bool:
    """Too few nodes could promise what it asks for."""
    if not job.spec.share or (not isinstance(job, DeploymentJob) and job.is_placed):
        return False
    room = Room(state)
    able = [n for n, member in state.members.items() if not member.witness and not member.draining]
    wanted = wanted_nodes(job.spec) if isinstance(job, TrainingJob) and not job.has_run else 1
    if isinstance(job, DeploymentJob):
        wanted = sum(not job.placed("replica", stage) for stage in range(job.stages))
    return sum(room.fits(job.spec, node) for node in able) < wanted


def _refs(versions: Iterable[ModelVersion], stages: int) -> list[ModelRef]:
    """Those that a deployment with so many stages could compute with."""
    if stages == 1:
        return [ModelRef(version.id, version.content) for version in versions]
    able = [version for version in versions if stages in version.cuts]
    return [ModelRef(version.id, replace(version.content, stages=version.cuts[stages])) for version in able]

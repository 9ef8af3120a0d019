"""A deployment in the replicated state: which processes serve the model. Who is busy, and who is asked what, is not in it."""

from collections.abc import Iterable, Iterator

from msgspec import field

from dmi_protocol import limits
from dmi_protocol.cluster.command import DeploymentSpec, Placement
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.kinds.job import ENDED, Job
from dmi_protocol.messages.roles import Endpoint, Role, RoleKey, Versions
from dmi_protocol.model import ModelRef
from dmi_protocol.reasons import Loss

PORTS = range(1, 65_536)


def is_fit(spec: DeploymentSpec) -> bool:
    """Are its numbers those of a deployment?"""
    counts = [1 if n is None else n for n in (spec.replicas, spec.most, spec.gateways, spec.threads)]
    follows_the_load = spec.most is not None
    are_few = max(counts[:2]) <= limits.DEPLOYED_REPLICAS and 0 < spec.max_batch <= limits.BATCH_ROWS
    has_both = bool(spec.certificate) == bool(spec.certificate_key)
    if follows_the_load and (spec.replicas is not None or not 0 <= spec.least <= counts[1]):
        return False
    return min(counts) > 0 and are_few and has_both and spec.max_wait_ms >= 0 and spec.port in PORTS


class DeploymentJob(Job, tag="deployment", kw_only=True):
    """It has no files of its own: what its replicas need are those of the model."""

    spec: DeploymentSpec
    changes: int = 0
    """How often the bound processes were others, or what they compute with."""
    has_run: bool = False
    """Was there ever a replica, and a gateway that could ask it?"""
    trouble: Loss | None = None
    """Why a process was lost last."""
    versions: Versions
    scale: int = 0
    """How many replicas there are to be, where they follow the load."""
    history: tuple[ModelRef, ...] = ()
    """What was current before, the last one last."""
    pinned: bool = False
    """Does it take no newer version by itself?"""
    unusable: dict[str, str] = field(default_factory=dict)
    """By version: why it could not be loaded."""

    def takes(self, placements: Iterable[Placement]) -> list[NodeId]:
        """For each replica. A gateway shares what replicas of its host have, or what is left there."""
        return [placement.node for placement in placements if placement.role.role == "replica"]

    def known(self) -> tuple[ModelRef, ...]:
        """Every version that it computes with, or did."""
        return (*self.versions.all, *reversed(self.history), self.spec.model)

    def models(self) -> tuple[str, ...]:
        """Those that it computes with now."""
        return tuple(ref.id for ref in self.versions.all)

    @property
    def stages(self) -> int:
        """Into how many the model is cut; 1 where a replica has all of it."""
        return len(self.spec.model.content.stages) or 1

    def stage(self, role: RoleKey) -> int:
        """Which one a replica has."""
        return next((placement.stage for placement in self.placements if placement.role == role), 0)

    def bound(self, role: Role) -> tuple[Endpoint, ...]:
        """The processes of this role that are bound."""
        return tuple(record.endpoint for record in self.endpoints if record.endpoint.key.role == role)

    def bound_stage(self, stage: int) -> tuple[Endpoint, ...]:
        """The replicas of a stage that are bound."""
        mine = {p.role for p in self.placements if p.role.role == "replica" and p.stage == stage}
        return tuple(endpoint for endpoint in self.bound("replica") if endpoint.key in mine)

    @property
    def computing(self) -> int:
        """How many replicas of the whole model there are: of each stage as many, or more."""
        if self.stages == 1:
            return len(self.bound("replica"))
        return min(len(self.bound_stage(stage)) for stage in range(self.stages))

    def placed(self, role: Role, stage: int | None = None) -> list[tuple[RoleKey, NodeId]]:
        """The processes of this role that are wanted, and their nodes; of one stage, or of all."""
        return [(p.role, p.node) for p in self.placements if p.role.role == role and stage in {None, p.stage}]

    @property
    def serves(self) -> bool:
        """Can a request be answered, or wake it?"""
        return bool((self.computing or self.is_asleep) and self.bound("gateway"))

    @property
    def is_asleep(self) -> bool:
        """Has it no replica because nobody has asked for long?"""
        return self.spec.most is not None and self.scale == 0

    def kept(self) -> Iterator[tuple[BlobHash, tuple[NodeId, ...]]]:
        """See ``Holding``: nothing."""
        return iter(())

    def blobs(self) -> dict[BlobHash, tuple[NodeId, ...]]:
        """See ``Holding``: nothing."""
        return {}


def is_deployed(job: Job, name: str) -> bool:
    """Is this a deployment of that name which goes on?"""
    return isinstance(job, DeploymentJob) and job.spec.name == name and job.state not in ENDED

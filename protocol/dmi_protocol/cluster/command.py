"""What is in the log. A command is a decision that somebody took; applying it computes nothing."""

from msgspec import Struct

from dmi_protocol.capacity import Capacity
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.messages.roles import Assignment, Machine, Role, RoleKey, Scope, Versions
from dmi_protocol.model import ModelContent, ModelRef, ModelStage
from dmi_protocol.reasons import Loss, Reason


class JobSpec(Struct, frozen=True, tag_field="kind"):
    """What a user submitted, whatever its kind."""

    name: str


class SharingSpec(JobSpec, frozen=True, kw_only=True):
    """What it is promised, if anything, and held to: of a training on each of its nodes, of others for each replica. ``threads``
    are those that torch computes with, in each worker or replica."""

    threads: int = 1
    cpus: int | None = None
    memory: int | None = None
    """In bytes."""

    @property
    def share(self) -> Capacity:
        """Both; false where nothing was said."""
        return Capacity(self.cpus or 0, self.memory or 0)


class TrainingSpec(SharingSpec, frozen=True, tag="training"):
    """None leaves the choice to the mesh (workers, servers, backups) or to the script (leaves)."""

    script: str
    args: tuple[str, ...] = ()
    workers: int | None = None
    servers: int | None = None
    backups: int | None = None
    leaves: int | None = None
    env: tuple[tuple[str, str], ...] = ()
    """What the script finds in its environment, besides."""
    python: str | None = None
    """The interpreter that runs the script, on each host; None for the node's own."""


class BatchSpec(SharingSpec, frozen=True, tag="batch"):
    """``inputs`` inputs in slices of ``slice_inputs``, the last of which may be shorter. ``replicas`` is how many nodes
    compute, None for all; ``per_node`` how many processes on each. ``packs`` has a blob with its inputs for each slice, where the
    inputs travel; it is empty where every replica reads them itself."""

    model: ModelRef
    inputs: int
    slice_inputs: int
    replicas: int | None = None
    per_node: int = 1
    packs: tuple[BlobHash, ...] = ()
    memory_per_replica: int | None = None
    """Why the model is cut into stages, where it is, which a replica computes in turn: so many bytes of weights may it hold."""

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return -(-self.inputs // self.slice_inputs)


class DeploymentSpec(SharingSpec, frozen=True, tag="deployment"):
    """A model that is served under its name. ``replicas`` is how many processes compute, None for two, or one where there is
    one node; ``gateways`` how many nodes take requests in, None for all, up to ``limits.GATEWAYS``. Gateways listen on ``port``,
    or where that is taken and ``may_move`` on the next one that is free. With ``exact`` each request is computed alone."""

    model: ModelRef
    replicas: int | None = None
    gateways: int | None = None
    max_batch: int = 32
    max_wait_ms: int = 5
    exact: bool = False
    port: int = 8_100
    may_move: bool = True
    follow: JobId | None = None
    """The training whose versions it takes, as they are published."""
    every: int | None = None
    """Each so-manieth checkpoint of that training is made a version, too."""
    certificate: str = ""
    certificate_key: str = ""
    """Files on each host with a gateway, absolute: with them gateways speak TLS."""
    least: int = 1
    most: int | None = None
    """Where it is said, the replicas follow the load between these two, and ``replicas`` is None. With ``least`` 0 they all end
    when nobody has asked for long, and the next request wakes one."""
    memory_per_replica: int | None = None
    """Why the model is cut into stages, where it is: so many bytes of weights may a process hold."""


Spec = TrainingSpec | BatchSpec | DeploymentSpec


class Part(Struct, frozen=True):
    """A shard's part of a checkpoint, and a node on whose disk it is: the server's own, or another checkpoint holder."""

    shard: int
    blob: BlobHash
    size_bytes: int
    node: NodeId


class Invite(Struct, frozen=True, tag="invite"):
    """Whoever holds the secret half of ``key`` may join once, until ``expires_unix``."""

    request: RequestId
    key: PublicKey
    expires_unix: int


class Admit(Struct, frozen=True, tag="admit"):
    """Redeem an invitation: one committed command, so it works once whatever node it reached. ``at_unix`` is the clock
    of the node that was asked."""

    request: RequestId
    invitation: PublicKey
    at_unix: int
    name: str
    address: str
    public_key: PublicKey
    witness: bool


class Remove(Struct, frozen=True, tag="remove"):
    """A member leaves or is expelled: its key counts no more."""

    request: RequestId
    node: NodeId


class Readdress(Struct, frozen=True, tag="readdress"):
    """A member listens somewhere else now."""

    request: RequestId
    node: NodeId
    address: str


class Resize(Struct, frozen=True, tag="resize"):
    """A member has so much for jobs now."""

    request: RequestId
    node: NodeId
    capacity: Capacity


class Drain(Struct, frozen=True, tag="drain"):
    """A member gives all its roles away, and gets no new ones until it is told otherwise."""

    request: RequestId
    node: NodeId
    on: bool


class AddToken(Struct, frozen=True, tag="add-token"):
    """Whoever has the token whose SHA-256 is ``digest`` may do what is of ``scope``, until the token is removed."""

    request: RequestId
    name: str
    digest: str
    scope: Scope
    at_unix: int


class RemoveToken(Struct, frozen=True, tag="remove-token"):
    """Nobody may do anything with it any more."""

    request: RequestId
    name: str


class Submit(Struct, frozen=True, tag="submit"):
    """A new job. Its id is a function of ``request``."""

    request: RequestId
    spec: Spec
    bundle: BlobHash
    holders: tuple[NodeId, ...]


class Cancel(Struct, frozen=True, tag="cancel"):
    """End a job, whatever it is doing."""

    request: RequestId
    job: JobId


class RemoveJob(Struct, frozen=True, tag="remove-job"):
    """Forget a job that has ended: its checkpoints and results are freed."""

    request: RequestId
    job: JobId


class Placement(Struct, frozen=True):
    """A role process that is wanted, and the node that it is to run on. ``stage`` says which part of the model a replica has."""

    role: RoleKey
    node: NodeId
    stage: int = 0


class TrainingStart(Struct, frozen=True, tag="training"):
    """What each process of a training does once all are ready."""

    assignment: Assignment
    checkpoint_holders: tuple[NodeId, ...] = ()
    """The i-th keeps a second copy of each part of the i-th shard; empty where nobody else is there."""
    restore: int | None = None
    """The step of the checkpoint that everybody begins from; None: from the initial weights."""


class BatchStart(Struct, frozen=True, tag="batch"):
    """Replicas begin one by one; what they compute is leased to them."""


class DeploymentStart(Struct, frozen=True, tag="deployment"):
    """Replicas and gateways begin one by one, and are told of each other."""


Start = TrainingStart | BatchStart | DeploymentStart


class Place(Struct, frozen=True, tag="place"):
    """A job's processes are started anew: who they are, and how they begin."""

    request: RequestId
    job: JobId
    generation: int
    placements: tuple[Placement, ...]
    start: Start


class Recruit(Struct, frozen=True, tag="recruit"):
    """More processes are wanted while a job runs. They do nothing before a ``Reassign`` assigns them something."""

    request: RequestId
    job: JobId
    generation: int
    placements: tuple[Placement, ...]


class Reassign(Struct, frozen=True, tag="reassign"):
    """A new generation of processes that go on: somebody was lost, has come, or does something else now.

    ``is_full`` says that nothing is amiss any more. The ``dismissed`` have nothing to do any more, and end."""

    request: RequestId
    job: JobId
    generation: int
    assignment: Assignment
    is_full: bool
    dismissed: tuple[RoleKey, ...] = ()


class ReadyRole(Struct, frozen=True, tag="ready-role"):
    """A worker that was recruited has caught up."""

    request: RequestId
    role: RoleKey


class SyncReplica(Struct, frozen=True, tag="sync"):
    """A server that was being filled in ``generation`` has all of ``shard``."""

    request: RequestId
    job: JobId
    generation: int
    shard: int
    server: int


class ReportPair(Struct, frozen=True, tag="pair"):
    """Two processes that need each other cannot talk, as ``role`` finds: it waits for ``peer`` of ``generation``."""

    request: RequestId
    role: RoleKey
    generation: int
    peer: Role
    index: int
    silent_ms: int


class MarkBusy(Struct, frozen=True, tag="busy"):
    """A role process gives no sign, and computes: its node leaves it alone. Or it gives signs again."""

    request: RequestId
    role: RoleKey
    is_busy: bool


class LoseRole(Struct, frozen=True, tag="lose"):
    """A role process is gone. ``step`` is the last one that was told."""

    request: RequestId
    role: RoleKey
    reason: Loss
    step: int | None = None


class SetCheckpointHolders(Struct, frozen=True, tag="set-checkpoint-holders"):
    """Other nodes keep the second copies from now on."""

    request: RequestId
    job: JobId
    generation: int
    checkpoint_holders: tuple[NodeId, ...]


class AddModel(Struct, frozen=True, tag="add-model"):
    """A version of a model; all of its files are on the ``holders``. ``at_unix`` is the clock of the node that was asked."""

    request: RequestId
    name: str
    content: ModelContent
    holders: tuple[NodeId, ...]
    at_unix: int


class CutModel(Struct, frozen=True, tag="cut-model"):
    """A version (``name:number``, made of what has this ``digest``) is cut into stages, whose files are on the ``holders``."""

    request: RequestId
    version: str
    digest: str
    stages: tuple[ModelStage, ...]
    holders: tuple[NodeId, ...]


class PublishVersion(Struct, frozen=True, tag="publish"):
    """A training has a version of a model; all of its files are on the node of ``role``, which is a worker's. Of the versions
    that it published the oldest go, beyond a number, unless they are used."""

    request: RequestId
    role: RoleKey
    name: str
    content: ModelContent
    at_unix: int


class RemoveModel(Struct, frozen=True, tag="remove-model"):
    """A version of a model, or all of them, that no job uses."""

    request: RequestId
    name: str
    number: int | None


class Recopy(Struct, frozen=True, tag="recopy"):
    """``node`` is to keep a copy of ``blob`` too, because too few others will: somebody leaves, or is dead for long. ``owner`` is
    the id of the job, or of the version of a model, that it belongs to."""

    request: RequestId
    owner: str
    blob: BlobHash
    node: NodeId
    nth: int = 0
    """How often a copy of this blob was asked for before: what was decided without knowing of the last time does nothing."""


class HoldBlob(Struct, frozen=True, tag="hold-blob"):
    """``node`` has a blob of ``owner`` on its disk, as it was to."""

    request: RequestId
    owner: str
    blob: BlobHash
    node: NodeId


class BindRole(Struct, frozen=True, tag="bind"):
    """A role process is bound and waits for the others. ``machine`` is what of its host may change the bits of a result, where
    that is compared in the state."""

    request: RequestId
    role: RoleKey
    address: str
    public_key: PublicKey
    pid: int
    machine: Machine = ()


class CompleteRole(Struct, frozen=True, tag="complete"):
    """A role has done all its work. The lead worker's node adds the last progress that it was told."""

    request: RequestId
    role: RoleKey
    step: int | None = None
    loss: float | None = None


class KeepPart(Struct, frozen=True, tag="keep-part"):
    """A shard's part of the checkpoint of ``step`` is durable on a node."""

    request: RequestId
    job: JobId
    generation: int
    step: int
    part: Part
    final: bool


class Finish(Struct, frozen=True, tag="finish"):
    """The job has ended. ``step`` is the last one that was told."""

    request: RequestId
    job: JobId
    generation: int
    state: str
    reason: Reason
    step: int | None = None


class LeaseSlices(Struct, frozen=True, tag="lease-slices"):
    """From now on each replica that is named, by its index, computes these slices, in this order, and nothing else. The
    ``dismissed`` have nothing to do any more, and end."""

    request: RequestId
    job: JobId
    generation: int
    leases: tuple[tuple[int, tuple[int, ...]], ...]
    dismissed: tuple[RoleKey, ...] = ()


class CommitSlice(Struct, frozen=True, tag="commit-slice"):
    """The result of a slice is durable on the node of the replica that computed it. ``failed`` of its inputs are error rows."""

    request: RequestId
    role: RoleKey
    slice: int
    blob: BlobHash
    size_bytes: int
    failed: int


class ReopenSlices(Struct, frozen=True, tag="reopen-slices"):
    """The results of these slices were on nodes that are ``gone``, and on no other ones: they are computed again."""

    request: RequestId
    job: JobId
    generation: int
    slices: tuple[int, ...]
    gone: tuple[NodeId, ...]


class Dismiss(Struct, frozen=True, tag="dismiss"):
    """These processes of a deployment have nothing to do any more, and end: others do it."""

    request: RequestId
    job: JobId
    generation: int
    dismissed: tuple[RoleKey, ...]


class SetVersions(Struct, frozen=True, tag="set-versions"):
    """A deployment computes with these versions from now on. One that is ``pinned`` takes no newer one by itself."""

    request: RequestId
    job: JobId
    versions: Versions
    pinned: bool = False


class SetScale(Struct, frozen=True, tag="set-scale"):
    """A deployment that follows the load has so many replicas from now on."""

    request: RequestId
    job: JobId
    replicas: int


class WakeDeployment(Struct, frozen=True, tag="wake"):
    """A gateway was asked, and there is no replica, because nobody had asked for long."""

    request: RequestId
    role: RoleKey


class RefuseVersion(Struct, frozen=True, tag="refuse-version"):
    """A replica cannot load a version: the deployment goes back to the one before, or does without the canary."""

    request: RequestId
    role: RoleKey
    version: str
    text: str


MemberCommand = Invite | Admit | Remove | Readdress | Resize | Drain | AddToken | RemoveToken
TrainingCommand = (
    Reassign | ReadyRole | SyncReplica | ReportPair | MarkBusy | CompleteRole | SetCheckpointHolders | KeepPart
)
BatchCommand = LeaseSlices | CommitSlice | ReopenSlices
DeploymentCommand = Dismiss | SetVersions | RefuseVersion | SetScale | WakeDeployment
KindCommand = TrainingCommand | BatchCommand | DeploymentCommand
"""Those of one kind of job alone."""
JobCommand = Submit | Cancel | RemoveJob | Place | Recruit | BindRole | LoseRole | Finish | KindCommand
ModelCommand = AddModel | RemoveModel | PublishVersion | CutModel
BlobCommand = Recopy | HoldBlob
Command = MemberCommand | JobCommand | ModelCommand | BlobCommand

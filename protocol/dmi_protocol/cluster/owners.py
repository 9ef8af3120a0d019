"""What the blobs on a node's disk belong to."""

from collections.abc import Mapping

from msgspec import Struct

from dmi_protocol.cluster.models import ModelVersion
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import BlobHash


class Used(Struct, frozen=True):
    """Bytes of a node's blobs: ``models`` by version, ``jobs`` by id (their files, checkpoints and results); what is spoken of by
    nothing, and goes once nobody may be about to speak of it."""

    models: dict[str, int] = {}
    jobs: dict[str, int] = {}
    unclaimed: int = 0


def used(state: ClusterState, sizes: Mapping[BlobHash, int]) -> Used:
    """Of blobs with these sizes. One that belongs to several is counted once, for a model if it can be."""
    models, jobs = dict[str, int](), dict[str, int]()
    left = dict(sizes)
    owners = sorted(state.holdings(), key=lambda owner: not isinstance(owner, ModelVersion))
    for owner in owners:
        mine = [blob for blob, _ in owner.kept() if blob in left]
        if mine:
            (models if isinstance(owner, ModelVersion) else jobs)[owner.id] = sum(
                left.pop(b) for b in dict.fromkeys(mine)
            )
    for job in state.jobs.values():
        if job.bundle in left:
            jobs[job.id] = jobs.get(job.id, 0) + left.pop(job.bundle)
    return Used(models, jobs, sum(left.values()))

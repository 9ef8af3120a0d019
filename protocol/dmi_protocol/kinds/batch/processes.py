"""The replicas of a batch inference on one node."""

from collections.abc import Iterator

from dmi_protocol.cluster.command import Command, CommitSlice
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.kinds.kind import Host, request_of
from dmi_protocol.messages.roles import BatchLaunch, Launch, Progressed, RoleEvent, RoleKey, Slices, SliceWritten


class BatchProcesses:
    """See ``Processes``."""

    def needs(self, job: BatchJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """The files of the model."""
        return tuple(file.blob for file in job.spec.model.content.needed)

    def inputs(self, job: BatchJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """Those of its slices, where they travel."""
        return job.packs_of(job.leases.get(role.index, ()))

    def launch(self, job: BatchJob, role: RoleKey, host: Host, needs: tuple[BlobHash, ...]) -> Launch:
        """Paths are the shell's to fill in."""
        return BatchLaunch(
            key=role,
            node=host.node,
            node_name=host.name,
            bundle_hash=job.bundle,
            bundle="",
            directory="",
            threads=job.spec.threads,
            host=host.address,
            ports=host.ports,
            needs=needs,
            share=job.spec.share,
            model=job.spec.model,
            inputs=job.spec.inputs,
            slice_inputs=job.spec.slice_inputs,
        )

    def told(self, job: BatchJob, role: RoleKey, since: int, *, has_inputs: bool) -> tuple[int, Slices] | None:
        """Its leases, whenever some were decided on, and their inputs are here."""
        if not has_inputs or since >= job.decided or role.index not in job.leases:
            return None
        slices = job.leases[role.index]
        return job.decided, Slices(job.decided, slices, job.reopened, job.packs_of(slices))

    def keeps(self, job: BatchJob, node: NodeId) -> Iterator[tuple[BlobHash, Command]]:
        """Nothing but the further copies that any job may have made."""
        return iter(())

    def is_leased(self, role: RoleKey) -> bool:
        """What a replica computes does not depend on anything that may have changed meanwhile."""
        return False

    def is_safe_without(self, job: BatchJob, role: RoleKey) -> bool:
        """It must be heard that a replica is gone."""
        return False

    def says(self, role: RoleKey, event: RoleEvent, node: NodeId, progress: Progressed | None) -> list[Command]:
        """What the others must learn."""
        if not isinstance(event, SliceWritten):
            return []
        request = request_of(role, f"slice-{event.slice}-{event.decided}")
        return [CommitSlice(request, role, event.slice, event.blob, event.size_bytes, event.failed)]

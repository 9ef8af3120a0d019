"""The replicas and gateways of a deployment on one node."""

from collections.abc import Iterator

from dmi_protocol.cluster.command import Command, RefuseVersion, WakeDeployment
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.kind import Host, request_of
from dmi_protocol.messages.roles import (
    Fleet,
    GatewayLaunch,
    Launch,
    Progressed,
    ReplicaLaunch,
    RoleEvent,
    RoleKey,
    Unusable,
    Wanted,
)
from dmi_protocol.model import ModelRef


class DeploymentProcesses:
    """See ``Processes``."""

    def needs(self, job: DeploymentJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """The files of the current version, or of its stage of it, for who computes."""
        return _blobs(job.versions.current, job.stage(role)) if role.role == "replica" else ()

    def inputs(self, job: DeploymentJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """The files of the versions of now."""
        return tuple(dict.fromkeys(_all_blobs(job, job.stage(role)))) if role.role == "replica" else ()

    def launch(self, job: DeploymentJob, role: RoleKey, host: Host, needs: tuple[BlobHash, ...]) -> Launch:
        """Paths are the shell's to fill in."""
        spec, stage = job.spec, job.stage(role)
        if role.role == "replica":
            return ReplicaLaunch(
                key=role,
                node=host.node,
                node_name=host.name,
                bundle="",
                directory="",
                threads=spec.threads,
                host=host.address,
                ports=host.ports,
                needs=needs,
                share=job.spec.share,
                model=next((ref for ref in job.known() if _blobs(ref, stage) == needs), job.versions.current),
                max_batch=spec.max_batch,
                stage=stage,
            )
        return GatewayLaunch(
            key=role,
            node=host.node,
            node_name=host.name,
            bundle="",
            directory="",
            threads=1,
            host=host.address,
            ports=host.ports,
            model=job.versions.current,
            max_batch=spec.max_batch,
            max_wait_ms=spec.max_wait_ms,
            exact=spec.exact,
            port=spec.port,
            may_move=spec.may_move,
            certificate=spec.certificate,
            certificate_key=spec.certificate_key,
        )

    def told(self, job: DeploymentJob, role: RoleKey, since: int, *, has_inputs: bool) -> tuple[int, Fleet] | None:
        """Who serves, whenever that has changed, once it is one of them; and what they compute with, as soon as it is here."""
        number = 2 * job.changes + has_inputs
        if since >= number or all(record.endpoint.key != role for record in job.endpoints):
            return None
        versions = job.versions if has_inputs else None
        if role.role == "gateway":
            return number, Fleet(number, job.bound_stage(0), (), versions)
        stage = job.stage(role)
        before = job.bound_stage(stage - 1) if stage else job.bound("gateway")
        return number, Fleet(number, job.bound_stage(stage + 1), before, versions, stage=stage)

    def keeps(self, job: DeploymentJob, node: NodeId) -> Iterator[tuple[BlobHash, Command]]:
        """Nothing: the model is kept as a model."""
        return iter(())

    def is_leased(self, role: RoleKey) -> bool:
        """An answer does not depend on anything that may have changed meanwhile."""
        return False

    def is_safe_without(self, job: DeploymentJob, role: RoleKey) -> bool:
        """It must be heard that one is gone."""
        return False

    def says(self, role: RoleKey, event: RoleEvent, node: NodeId, progress: Progressed | None) -> list[Command]:
        """How busy it is concerns nobody for ever: it is gossip."""
        if isinstance(event, Wanted):
            return [WakeDeployment(request_of(role, f"wanted-{event.number}"), role)]
        if not isinstance(event, Unusable):
            return []
        request = request_of(role, f"unusable-{event.number}")
        return [RefuseVersion(request, role, event.version, event.text)]


def _blobs(ref: ModelRef, stage: int) -> tuple[BlobHash, ...]:
    return tuple(file.blob for file in ref.content.files_of(stage))


def _all_blobs(job: DeploymentJob, stage: int) -> Iterator[BlobHash]:
    for ref in job.versions.all:
        yield from _blobs(ref, stage)

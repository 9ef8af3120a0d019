"""The replicas and gateways of a deployment on one node."""

from collections.abc import Iterator

from dmi_protocol.cluster.command import Command
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.kind import Host
from dmi_protocol.messages.roles import Fleet, GatewayLaunch, Launch, Progressed, ReplicaLaunch, RoleEvent, RoleKey


class DeploymentProcesses:
    """See ``Processes``."""

    def needs(self, job: DeploymentJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """The files of the model, for who computes."""
        return tuple(file.blob for file in job.spec.model.content.files) if role.role == "replica" else ()

    def inputs(self, job: DeploymentJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """Nothing more."""
        return ()

    def launch(self, job: DeploymentJob, role: RoleKey, host: Host, needs: tuple[BlobHash, ...]) -> Launch:
        """Paths are the shell's to fill in."""
        spec = job.spec
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
                model=spec.model,
                max_batch=spec.max_batch,
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
            model=spec.model,
            max_batch=spec.max_batch,
            max_wait_ms=spec.max_wait_ms,
            exact=spec.exact,
            port=spec.port,
            may_move=spec.may_move,
        )

    def told(self, job: DeploymentJob, role: RoleKey, since: int) -> tuple[int, Fleet] | None:
        """Who serves, whenever that has changed, once it is one of them."""
        if since >= job.changes or all(record.endpoint.key != role for record in job.endpoints):
            return None
        return job.changes, Fleet(job.changes, job.bound("replica"), job.bound("gateway"))

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
        return []

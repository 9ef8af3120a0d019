"""What a node tells the coordinator about the role processes that it hosts."""

from msgspec import Struct

from dmi_protocol.messages.roles import Bound, Completed, Exited, Failed, PartWritten, RoleKey


class RoleReport(Struct, frozen=True, tag="role-report"):
    """Something happened to a role process here. Repeated until the replicated state shows it."""

    role: RoleKey
    event: Bound | Completed | Failed | Exited | PartWritten


class BundleMissing(Struct, frozen=True, tag="bundle-missing"):
    """A node cannot get the files of a job that it should play a role in."""

    role: RoleKey
    detail: str


JobMessage = RoleReport | BundleMissing

"""Who computes which slices from now on: pure, from the state."""

from collections.abc import Collection

from dmi_protocol import limits
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.messages.roles import RoleKey


def leases(job: BatchJob, nodes: Collection[NodeId]) -> tuple[dict[int, tuple[int, ...]], tuple[RoleKey, ...]]:
    """The leases that are to change, by replica, and the replicas that have nothing to do any more.

    Every replica has ``limits.LEASES`` slices, so that it can read one while it computes another; the lowest come first, so
    that what is done is a beginning. When none is left to give, who has nothing takes over what another one has not begun;
    and when there is no such slice either, computes what a slower one computes already: the first result counts. Replicas
    on nodes that are not among ``nodes`` end what they have begun, and are dismissed.
    """
    where = dict(job.roles())
    bound = sorted(record.endpoint.key for record in job.endpoints)
    able = [role.index for role in bound if where[role] in nodes]
    held = {role.index: list(job.leases.get(role.index, ())) for role in bound}
    for replica, slices in held.items():
        if replica not in able:
            del slices[1:]
    taken = {slice_ for slices in held.values() for slice_ in slices}
    free = [slice_ for slice_ in job.open_slices() if slice_ not in taken]
    for slice_ in free if able else ():
        idlest = min(able, key=lambda replica: (len(held[replica]), replica))
        if len(held[idlest]) >= limits.LEASES:
            break
        held[idlest].append(slice_)
    for replica in able:
        if not held[replica]:
            held[replica] = _take_over(held)
    changed = {replica: tuple(s) for replica, s in held.items() if tuple(s) != job.leases.get(replica, ())}
    dismissed = tuple(role for role in bound if role.index not in able and not held[role.index])
    return changed, dismissed


def _take_over(held: dict[int, list[int]]) -> list[int]:
    """A slice of another replica: one that it has not begun, or else one that nobody else helps with."""
    fullest = max(held, key=lambda replica: (len(held[replica]), -replica))
    if len(held[fullest]) > 1:
        return [held[fullest].pop()]
    begun = [slices[0] for slices in held.values() if slices]
    alone = [slice_ for slice_ in begun if begun.count(slice_) == 1]
    return [min(alone)] if alone else []

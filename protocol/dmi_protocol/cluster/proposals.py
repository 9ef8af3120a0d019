"""What this node has asked to be agreed, until its own state shows the outcome or the patience is over.

A command goes to the coordinator again and again, under the same request id; the replicated state remembers outcomes, so
it is done once.
"""

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.codec import pack
from dmi_protocol.effects import Answer
from dmi_protocol.identity import NodeId, RequestId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.reasons import LimitReached, Reason, TimedOut

RETRY_MS = 500


class _Pending(Struct):
    command: Command
    try_at: Instant
    ends_at: Instant | None
    """When the one who asked is told that it failed; None for facts, which are told until they are known."""
    within_ms: int
    tried: tuple[NodeId | None, int] | None = None
    """Whom it was given to, and in which term."""
    refusal: Reason | None = None
    """It is given to nobody, and why."""


class Proposals:
    """See the module."""

    def __init__(self) -> None:
        self.pending: dict[RequestId, _Pending] = {}
        """By request; read by the peer on every step, to have nothing done when there is nothing to do."""

    def ask(self, now: Instant, command: Command, within_ms: int) -> None:
        """Somebody waits for an ``Answer``. What no log takes is refused at once."""
        pending = _Pending(command, now, after(now, within_ms), within_ms)
        if len(pack(command)) > limits.COMMAND_BYTES:
            pending.ends_at, pending.refusal = now, LimitReached("bytes in a command", limits.COMMAND_BYTES)
        self.pending[command.request] = pending

    def tell(self, now: Instant, command: Command) -> None:
        """A fact that the others must learn, however long it takes."""
        if command.request not in self.pending:
            self.pending[command.request] = _Pending(command, now, None, 0)

    def deadline(self) -> Instant | None:
        """When something is to be tried again, or given up."""
        return earliest(*[at for pending in self.pending.values() for at in (pending.try_at, pending.ends_at)])

    def due(self, now: Instant, leader: NodeId | None, term: int) -> list[Command]:
        """What should be given to ``leader`` now: what is new to it, and what it has had for long."""
        found: list[Command] = []
        if not self.pending:
            return found
        if leader is None:
            for pending in self.pending.values():
                pending.try_at = max(pending.try_at, after(now, RETRY_MS)) if now >= pending.try_at else pending.try_at
            return found
        for pending in self.pending.values():
            if pending.refusal is None and (now >= pending.try_at or pending.tried != (leader, term)):
                pending.try_at = after(now, RETRY_MS)
                pending.tried = (leader, term)
                found.append(pending.command)
        return found

    def settle(self, now: Instant, state: ClusterState | None, why: Reason | None) -> list[Answer]:
        """Answers for what the state shows, and for those whose patience is over; ``why`` explains the latter."""
        answers: list[Answer] = []
        for request, pending in list(self.pending.items()):
            outcome = state.requests.get(request) if state is not None else None
            if outcome is None and (pending.ends_at is None or now < pending.ends_at):
                continue
            del self.pending[request]
            if pending.ends_at is None:
                continue
            if outcome is not None:
                answers.append(Answer(request, outcome.value, outcome.refusal))
            else:
                answers.append(Answer(request, "", pending.refusal or why or TimedOut(pending.within_ms)))
        return answers

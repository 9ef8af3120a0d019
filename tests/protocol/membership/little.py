"""A few failure detectors and a network that loses what a test wants to be lost."""

from collections.abc import Callable
from random import Random

from dmi_protocol.effects import Send
from dmi_protocol.events import Event, Received, Ticked
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.membership.settings import SwimSettings
from dmi_protocol.membership.swim import MemberChanged, Swim
from dmi_protocol.messages.membership import MembershipMessage, Standing

DELAY_MS = 2


class Mesh:
    """``lost`` says whether a message from one node to another is lost."""

    def __init__(self, size: int, settings: SwimSettings | None = None) -> None:
        self.now = Instant(0)
        self.settings = settings or SwimSettings()
        self.nodes = [NodeId(f"{number:016x}") for number in range(size)]
        self.swims: dict[NodeId, Swim] = {}
        self.lost: Callable[[NodeId, NodeId], bool] = lambda source, target: False
        self.sent: list[tuple[Instant, NodeId, NodeId, MembershipMessage]] = []
        self.changes: list[tuple[NodeId, NodeId, Standing]] = []
        self._way: list[tuple[Instant, NodeId, Event]] = []
        for node in self.nodes:
            self.start(node)

    def start(self, node: NodeId, boot_count: int | None = None) -> Swim:
        swim = Swim(
            node, self.settings, Random(f"{node}{self.now}"), int(self.now) if boot_count is None else boot_count
        )
        swim.set_members(self.now, frozenset(self.nodes))
        self.swims[node] = swim
        return swim

    def kill(self, node: NodeId) -> None:
        del self.swims[node]

    def give(self, node: NodeId, event: Event) -> None:
        swim = self.swims.get(node)
        if swim is None:
            return
        for output in swim.step(self.now, event):
            if isinstance(output, MemberChanged):
                self.changes.append((node, output.node, output.standing))
            elif isinstance(output, Send):
                assert isinstance(output.message, MembershipMessage)
                self.sent.append((self.now, node, output.to, output.message))
                if not self.lost(node, output.to):
                    self._way.append((Instant(self.now + DELAY_MS), output.to, Received(node, output.message)))
        swim.check()

    def run(self, milliseconds: int) -> None:
        end = self.now + milliseconds
        while True:
            ticks = [(d, node) for node, swim in self.swims.items() if (d := swim.deadline()) is not None]
            tick = min(ticks, default=None)
            if self._way and (tick is None or self._way[0][0] <= tick[0]):
                at, node, event = self._way[0]
                if at > end:
                    break
                del self._way[0]
                self.now = Instant(max(self.now, at))
                self.give(node, event)
            elif tick is not None and tick[0] <= end:
                self.now = Instant(max(self.now, tick[0]))
                self.give(tick[1], Ticked())
            else:
                break
        self.now = Instant(end)

    def seen(self, node: NodeId) -> set[Standing]:
        """How the others see a node."""
        return {swim.members[node].standing for other, swim in self.swims.items() if other != node}

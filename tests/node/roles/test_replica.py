"""A shard whose disk has no room waits, and its process does not."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from dmi_node.roles.replica import Host, ShardReplica
from dmi_node.roles.tensors import Tensors
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.instant import Instant
from dmi_protocol.training import exchange as x
from dmi_protocol.training.shard import Shard


class Script:
    """A machine that wants a part written when it is asked for one, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[x.ShardEvent] = []

    def deadline(self) -> Instant:
        return Instant(7)

    def step(self, now: Instant, event: x.ShardEvent) -> list[x.ShardEffect]:
        self.told.append(event)
        if isinstance(event, x.Pulled):
            raise RemoteProtocolError("nonsense")
        return [x.WritePart(event.step, b"", final=False)] if isinstance(event, x.CheckpointAsked) else []


def test_nothing_is_applied_before_the_part_is_taken_and_then_all_is_in_order() -> None:
    written: list[int] = []
    writer = SimpleNamespace(is_full=True, write=lambda path, part, shard, final: written.append(part))
    host = cast(Host, SimpleNamespace(writer=writer, directory=Path(), meanwhile=lambda: None))
    tensors = cast(Tensors, SimpleNamespace(part=lambda step, extra, fingerprint: step))
    copy, script = ShardReplica(host, 0, tensors, lambda: Instant(0)), Script()
    copy._shard = cast(Shard, script)
    copy.happened(x.CheckpointAsked(0, 4, b""))
    assert (written, copy.deadline()) == ([], None)
    later: list[x.ShardEvent] = [x.Initialized(0, 1), x.Leased(Instant(1)), x.Pulled(0, 1, ()), x.Leased(Instant(2))]
    for event in later:
        copy.happened(event)
    copy.go_on()
    assert len(script.told) == 1, "there is no room yet"
    writer.is_full = False
    copy.go_on()
    assert written == [4]
    assert script.told[1:] == [x.Initialized(0, 1), x.Pulled(0, 1, ()), x.Leased(Instant(2))], (
        "of leases the last counts"
    )
    assert copy.deadline() == Instant(7)

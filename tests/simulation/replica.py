"""A replica's process: computes the slices that it is told to, one after another."""

import hashlib

from dmi_protocol.identity import BlobHash, JobId, PublicKey
from dmi_protocol.kinds.batch.queue import SliceQueue
from dmi_protocol.messages.roles import BatchLaunch, Lease, RoleKey, Roster, Slices, SliceWritten
from tests.simulation.node import Node
from tests.simulation.process import Said, tell_daemon
from tests.simulation.sockets import Sockets
from tests.simulation.trouble import demand

_QUICK_MS = 300
_SLOW_MS = 1_500


def result_of(job: JobId, slice_: int) -> BlobHash:
    """What every replica computes for a slice."""
    return BlobHash(hashlib.sha256(f"{job}/slice-{slice_}".encode()).hexdigest())


class ScriptedReplica:
    """Some are quick, some slow; each computes one slice at a time."""

    def __init__(self, sockets: Sockets, node: Node, launch: BatchLaunch) -> None:
        self.key: RoleKey = launch.key
        self.public_key = PublicKey(f"{len(sockets.processes)}".ljust(40, "."))
        self.node = node
        self.boot_count = node.boot_count
        self.is_alive = True
        self._sockets = sockets
        self._most_ms = sockets.clock.random.choice([_QUICK_MS, _QUICK_MS, _SLOW_MS])
        self._queue = SliceQueue()
        self._is_busy = False

    def slices(self, message: Slices) -> None:
        """Compute these from now on. Inputs that travel are here before anybody says so."""
        missing = [pack for pack in message.packs if pack not in self.node.blobs]
        demand("inputs", not missing, f"{self.key.name} on {self.node.name} is told slices whose inputs are not there")
        self._queue.told(message)
        self._go_on()

    def roster(self, roster: Roster) -> None:
        """See ``Process``; replicas need not know each other."""

    def lease(self, lease: Lease) -> None:
        """See ``Process``; no replica needs one."""

    def hear(self, sender: RoleKey, said: Said) -> None:
        """See ``Process``; nobody speaks to a replica."""

    def _go_on(self) -> None:
        first = self._queue.first
        if self.is_alive and not self._is_busy and first is not None:
            self._is_busy = True
            delay = 1 + int(self._most_ms * self._sockets.clock.random.random())
            self._sockets.clock.later(delay, self._computed, first)

    def _computed(self, slice_: int) -> None:
        """What was taken away meanwhile is given up."""
        self._is_busy = False
        if not self.is_alive:
            return
        if self._queue.wants(slice_):
            blob = result_of(self.key.job, slice_)
            self.node.blobs[blob] = {}
            tell_daemon(self, self._sockets.clock, SliceWritten(self._queue.decided, slice_, blob, "result", 1, 0))
            self._queue.written(slice_)
        self._go_on()

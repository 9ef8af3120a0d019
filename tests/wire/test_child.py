"""A role process and its channel, with the test as its daemon."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import (
    Assignment,
    Completed,
    Failed,
    FromRole,
    Lease,
    Moving,
    RoleKey,
    Roster,
    Stop,
    ToRole,
    TrainingLaunch,
)
from dmi_wire.channel import framed
from dmi_wire.child import Child

pytestmark = pytest.mark.processes

PATIENCE_S = 20.0
ASSIGNMENT = TrainingLaunch(
    key=RoleKey(JobId("job-000000"), 1, "worker", 0),
    node=NodeId("0" * 16),
    node_name="n0",
    script="train.py",
    args=(),
    bundle_hash=BlobHash("0" * 64),
    bundle="/bundle",
    directory="/directory",
    leaves=None,
    threads=1,
    workers=1,
    shards=1,
    host="127.0.0.1",
    ports=(1, 2),
)
CHILD = """
import time
from dmi_protocol.messages.roles import Completed, TrainingLaunch
from dmi_wire.child import Child
child = Child.inherit()
assert child.launch(TrainingLaunch).script == "train.py"
child.start()
if %r:
    child.fail("late", "no time", starting=True)
child.roster()
child.tell(Completed())
time.sleep(%d)
child.end(0)
"""


class Daemon:
    """Our end, and the process at the other."""

    def __init__(self, then_s: int, *, fails: bool = False) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(PATIENCE_S)
        with theirs:
            self.child = subprocess.Popen(
                [sys.executable, "-c", CHILD % (fails, then_s)],
                env={"DMI_ROLE_FD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
            )
        self.tell(ASSIGNMENT)

    def tell(self, message: ToRole) -> None:
        body = encode_struct(message)
        self.channel.sendall(len(body).to_bytes(4, "big") + body)

    def hear(self) -> FromRole:
        """The next message, beats included."""
        length = int.from_bytes(self.channel.recv(4, socket.MSG_WAITALL), "big")
        message: FromRole = decode_struct(self.channel.recv(length, socket.MSG_WAITALL), FromRole)
        return message

    def is_over(self) -> bool:
        """Read to the end of what it says, which must be beats."""
        while length := self.channel.recv(4, socket.MSG_WAITALL):
            body = self.channel.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
            assert decode_struct(body, FromRole) == Moving()
        return True

    def news(self) -> FromRole:
        """The next message that is not a beat."""
        deadline = time.monotonic() + PATIENCE_S
        while isinstance(message := self.hear(), Moving):
            assert time.monotonic() < deadline, "nothing but beats"
        return message


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon(60)
    yield made
    made.channel.close()
    made.child.kill()
    made.child.wait(PATIENCE_S)


def test_a_child_beats_and_hears_its_roster(daemon: Daemon) -> None:
    assert daemon.hear() == Moving()
    assert daemon.hear() == Moving()
    daemon.tell(Roster(1, 1, (), (), Assignment((), (), 0, ())))
    assert daemon.news() == Completed()


def test_a_child_beats_however_often_it_is_spoken_to(daemon: Daemon) -> None:
    """An idle server hears a lease more often than it beats."""
    deadline, beats = time.monotonic() + PATIENCE_S, 0
    while beats < 4:
        assert time.monotonic() < deadline, "it does not beat while it is told leases"
        daemon.tell(Lease(Instant(1)))
        if select.select([daemon.channel], [], [], 0.05)[0]:
            assert daemon.hear() == Moving()
            beats += 1


def test_a_child_is_there_until_its_last_words_are_read() -> None:
    """Else the daemon would write to nobody, and lose them with the broken channel."""
    daemon = Daemon(0)
    daemon.tell(roster(1))
    assert daemon.news() == Completed()
    assert daemon.is_over()
    daemon.tell(Lease(Instant(1)))
    assert daemon.child.poll() is None
    daemon.channel.close()
    assert daemon.child.wait(PATIENCE_S) == 0


def test_a_child_ends_with_its_daemon(daemon: Daemon) -> None:
    assert daemon.hear() == Moving()
    daemon.channel.close()
    assert daemon.child.wait(PATIENCE_S) == 113


def test_a_child_stops_when_it_is_told_to(daemon: Daemon) -> None:
    daemon.tell(Stop())
    assert daemon.child.wait(PATIENCE_S) == -15


def test_a_child_that_gives_up_says_why_before_it_ends() -> None:
    daemon = Daemon(60, fails=True)
    assert daemon.news() == Failed("late", "no time", starting=True)
    assert daemon.is_over()
    daemon.channel.close()
    assert daemon.child.wait(PATIENCE_S) == 1


class Told:
    """A child in this process, which cannot be orphaned while we hold the other end."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.child = Child(theirs)

    def tell(self, *messages: ToRole) -> None:
        """All of them, in order; when this returns the child has taken them."""
        for message in messages:
            self.ours.sendall(framed(encode_struct(message)))
            self.child._take(self.child._receive())

    def is_readable(self) -> bool:
        """Would a poller wake for the child?"""
        return bool(select.select([self.child.fd], [], [], 0)[0])

    def close(self) -> None:
        self.ours.close()
        self.child._channel.close()
        os.close(self.child.fd)


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


def roster(generation: int) -> Roster:
    return Roster(generation, 1, (), (), Assignment((), (), 0, ()))


def test_the_newest_roster_is_the_last_one_and_is_given_once(told: Told) -> None:
    assert told.child.newest() is None
    told.tell(roster(1), roster(2), roster(3))
    assert told.is_readable()
    assert told.child.newest() == roster(3)
    assert told.child.newest() is None
    assert not told.is_readable()
    told.tell(roster(4))
    assert told.is_readable()
    assert told.child.newest() == roster(4)


def test_the_first_roster_is_waited_for_and_those_after_it_stay(told: Told) -> None:
    told.tell(roster(1), roster(2))
    assert told.child.roster() == roster(1)
    assert told.is_readable()
    assert told.child.newest() == roster(2)


def test_a_lease_wakes_the_process_and_is_no_roster(told: Told) -> None:
    assert told.child.lease == Lease(Instant(0))
    told.tell(Lease(Instant(5)), Lease(Instant(7)))
    assert told.is_readable()
    assert told.child.newest() is None
    assert told.child.lease == Lease(Instant(7))
    assert not told.is_readable()

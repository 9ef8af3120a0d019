"""What waits for a full disk keeps its order, and nothing that leaves meanwhile is a promise."""

from dmi_protocol.deferred import DeferredEffects
from dmi_protocol.effects import Answer, Changed, DropBlob, Effect, PersistVote, Send
from dmi_protocol.events import BlobArrived, RoleHappened
from dmi_protocol.identity import BlobHash, JobId, NodeId, RequestId
from dmi_protocol.messages.control import Seeking
from dmi_protocol.messages.roles import PartWritten, RoleKey
from dmi_protocol.reasons import DiskFull, TimedOut

THERE = NodeId("1" * 16)
SAID, VOTE = Send(THERE, Seeking()), PersistVote(3, THERE)
ONE, TWO = DropBlob(BlobHash("1")), DropBlob(BlobHash("2"))
YES, NO = Answer(RequestId("r"), "yes"), Answer(RequestId("s"), "", TimedOut(5))


def test_a_refused_turn_is_held_and_what_it_said_is_lost() -> None:
    deferred = DeferredEffects("n0")
    denied = Answer(RequestId("r"), "", DiskFull("n0", "full"))
    assert deferred.hold("full", [ONE, VOTE, SAID, YES, NO, Changed(), TWO]) == [denied, NO, Changed()]
    assert deferred.writes == [VOTE]
    assert deferred.release() == [ONE, TWO]
    assert deferred.release() == deferred.writes == []


def test_later_turns_may_speak_and_do_nothing_else() -> None:
    deferred = DeferredEffects("n0")
    deferred.hold("full", [VOTE, ONE])
    assert deferred.hold("full", [SAID, TWO, YES])[:1] == [SAID]
    assert deferred.release() == [ONE, TWO]


def test_a_blob_that_has_come_meanwhile_stays() -> None:
    """Simulation, seed 92: the part of a new generation was of the same bytes as one that nothing spoke of any more."""
    part = PartWritten(2, 0, ONE.blob, "p", 1, final=True)
    for event in (BlobArrived(ONE.blob), RoleHappened(RoleKey(JobId("j"), 2, "server", 0), part)):
        deferred = DeferredEffects("n0")
        effects: list[Effect] = [VOTE, ONE, TWO]
        deferred.hold("full", effects)
        deferred.happened(event)
        assert deferred.release() == [TWO]

"""What is spread comes out again, and the furthest progress counts."""

from dmi_protocol.gossip_facts import (
    about,
    facts_of,
    pack_facts,
    pack_told,
    progress_of,
    unpack_facts,
    unpack_progress,
)
from dmi_protocol.identity import JobId, NodeId
from dmi_protocol.messages.membership import FACTS, Rumor
from dmi_protocol.messages.roles import Progressed

A, B = NodeId("a" * 16), NodeId("b" * 16)
JOB = JobId("job-1")


def test_rumors_survive_their_packing_and_nonsense_is_nothing() -> None:
    told = Progressed(3, None, 1.5, None)
    assert unpack_progress(pack_told(told)) == told
    assert unpack_facts(pack_facts((7, "1.0", ""))) == (7, "1.0", "")
    for nonsense in (b"", b"\xc1", pack_facts((7, "1.0", ""))):
        assert unpack_progress(nonsense) is None
    assert unpack_facts(pack_told(told)) is None


def test_the_furthest_progress_of_a_job_counts() -> None:
    rumors = {
        (A, about(JOB)): Rumor(A, about(JOB), 9, pack_told(Progressed(3, 10, 1.5, 0.5))),
        (B, about(JOB)): Rumor(B, about(JOB), 1, pack_told(Progressed(4, 10, 1.5, 0.25))),
        (B, about(JobId("job-2"))): Rumor(B, about(JobId("job-2")), 1, pack_told(Progressed(9, 10, 1.5, None))),
        (A, FACTS): Rumor(A, FACTS, 1, pack_facts((7, "1.0", ""))),
        (B, FACTS): Rumor(B, FACTS, 1, b"nonsense"),
    }
    assert progress_of(rumors, JOB) == Progressed(4, 10, 1.5, 0.25)
    assert progress_of(rumors, JobId("job-3")) is None
    assert (facts_of(rumors, A), facts_of(rumors, B), facts_of({}, A)) == ((7, "1.0", ""), None, None)

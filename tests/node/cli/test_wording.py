"""What people read: rows, numbers, and which losses can be survived."""

from typing import Any

import pytest

from dmi_node.cli import wording
from tests.sdk.fake_node import JOB


@pytest.mark.parametrize(
    ("step", "steps", "shown"), [(None, None, "-"), (3, None, "3"), (3, 12, "3 of 12"), (0, 12, "0 of 12")]
)
def test_progress(step: int | None, steps: int | None, shown: str) -> None:
    assert wording.progress_of(JOB | {"step": step, "steps": steps}) == shown


def test_a_job_that_has_not_begun_has_dashes() -> None:
    row = wording.job_row(JOB | {"step": None, "samples_per_second": None, "loss": None})
    assert row == ["digits-1a2b", "succeeded", "-", "-", "-", ""]


def test_a_job_that_recovers_says_what_from() -> None:
    lost = JOB | {
        "state": "recovering",
        "step": 3,
        "steps": 12,
        "samples_per_second": None,
        "loss": None,
        "reason": "n1",
    }
    assert wording.line_of(lost, with_reason=True) == "recovering: n1"
    assert wording.line_of(lost) == "recovering: step 3 of 12"


def voters(*states: str) -> dict[str, Any]:
    return {"members": [{"voter": True, "state": state} for state in states] + [{"voter": False, "state": "alive"}] * 4}


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("alive",), "no voter can be lost now"),
        (("alive",) * 3, "1 of 3 voters can be lost now"),
        (("alive", "alive", "dead"), "no voter can be lost now"),
        (("alive", "suspect", "dead"), "nothing can be decided"),
        (("alive",) * 5, "2 of 5 voters can be lost now"),
    ],
)
def test_which_losses_can_be_survived(states: tuple[str, ...], said: str) -> None:
    assert wording.survives(voters(*states)).startswith(said)


def test_a_voter_in_trouble_is_as_good_as_lost() -> None:
    three = voters("alive", "alive", "alive")
    three["members"][0]["trouble"] = "its disk is full"
    assert wording.survives(three) == "no voter can be lost now"
    assert wording.troubles(three) == ["its disk is full"]


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"state": "queued", "step": None, "steps": None, "loss": None}, "queued"),
        ({"state": "running", "samples_per_second": 1811.2}, "running: step 12 of 12, 1,811 samples/s, loss 0.2500"),
        ({"state": "running", "steps": None, "loss": None}, "running: step 12"),
        ({}, "succeeded: step 12 of 12, loss 0.2500"),
    ],
)
def test_a_job_in_a_line_is_what_is_known_of_it(job: dict[str, Any], said: str) -> None:
    assert wording.line_of(JOB | job) == said


def test_the_roles_of_several_jobs_are_told_apart() -> None:
    def row(*roles: tuple[str, str]) -> str:
        plain = [{"job": job, "role": role} for job, role in roles]
        member = {"name": "n0", "state": "alive", "address": "a:1", "voter": True, "pid": 7, "roles": plain}
        return wording.member_row(member)[-1]

    assert row() == ""
    assert row(("a-1", "worker-0"), ("a-1", "server-0")) == "server-0, worker-0"
    assert (
        row(("a-1", "worker-0"), ("b-2", "worker-1"), ("a-1", "server-0")) == "a-1: server-0, worker-0; b-2: worker-1"
    )


def test_a_witness_says_so_where_others_have_roles() -> None:
    member = {"name": "n0", "state": "alive", "address": "a:1", "voter": True, "pid": 7, "roles": []}
    assert wording.member_row(member | {"witness": True})[-1] == "witness"
    assert wording.member_row(member | {"witness": False})[-1] == ""


def test_text_from_elsewhere_moves_no_cursor() -> None:
    assert wording.one_line("a\x1b[31mb\nc\rd\x07 ä") == "a [31mb c d  ä"


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ({}, "running: 640 of 1,797 inputs, 200 inputs/s, 6 s left"),
        ({"failed_inputs": 2}, "running: 640 of 1,797 inputs, 2 failed, 200 inputs/s, 6 s left"),
        ({"step": 40}, "running: 40 of 1,797 inputs, 0 inputs/s"),
        ({"state": "recovering", "reason": "n1 is lost"}, "recovering: n1 is lost"),
    ],
)
def test_how_far_an_inference_is(job: dict[str, Any], line: str) -> None:
    running = JOB | {"state": "running", "step": 640, "steps": 1_797, "failed_inputs": 0} | job
    assert wording.inferring(running, 40, 3.0) == line


def test_what_is_left_for_jobs() -> None:
    member = {"name": "n0", "state": "alive", "address": "h:1", "voter": True, "pid": 7, "roles": [], "witness": False}
    room = {"cpus": 4, "cpus_left": 1, "memory": 24 * 10**9, "memory_left": 8 * 10**9}
    assert wording.whole_member_row(member | room)[5] == "1 of 4 cpus, 8.0 of 24.0 GB"
    assert wording.whole_member_row(member | room | {"memory_left": 5 * 10**8})[5] == "1 of 4 cpus, 500.0 MB of 24.0 GB"
    assert (
        wording.whole_member_row(member | room | {"cpus_left": -2, "memory_left": -1})[5]
        == "0 of 4 cpus, 0 B of 24.0 GB"
    )
    assert wording.whole_member_row(member)[5] == "-", "a node of an earlier version"
    assert wording.whole_member_row(member | room | {"witness": True})[5] == "-"

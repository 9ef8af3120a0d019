"""One job as its owner sees it, up to the file that it leaves."""

from pathlib import Path

import pytest

from dmi.connection import Connection
from dmi.errors import DmiError, JobFailedError, RefusedError, UnknownJobError
from dmi.job import Job
from tests.sdk.fake_node import JOB, FakeNode, items, refuse, value


def job(home: Path) -> Job:
    return Job(Connection(home), str(JOB["id"]))


def test_waiting_ends_with_the_last_event(tmp_path: Path) -> None:
    running = JOB | {"state": "running", "step": 3}
    with FakeNode(tmp_path, jobs=value([running]), events=items(running, JOB)):
        assert job(tmp_path).wait() == JOB


def test_a_failure_is_raised_as_its_sentence(tmp_path: Path) -> None:
    failed = JOB | {"state": "failed"}
    why = {"job": JOB["id"], "state": "failed", "sentence": "worker-0 on n1 died", "detail": None}
    with (
        FakeNode(tmp_path, jobs=value([failed]), events=items(failed), why=value(why)),
        pytest.raises(JobFailedError, match=r"^worker-0 on n1 died$"),
    ):
        job(tmp_path).wait()


def test_waiting_for_a_job_that_ended_long_ago_needs_no_event(tmp_path: Path) -> None:
    with FakeNode(tmp_path, jobs=value([JOB]), events=items()):
        assert job(tmp_path).wait() == JOB


def test_a_job_that_is_gone_is_unknown(tmp_path: Path) -> None:
    with FakeNode(tmp_path, jobs=value([])), pytest.raises(UnknownJobError, match="digits-1a2b"):
        job(tmp_path).status()


def test_logs_are_pairs_of_process_and_line(tmp_path: Path) -> None:
    lines = items({"worker": "worker-0@n1", "line": "epoch 0"}, {"worker": "server-0@n0", "line": "bound"})
    with FakeNode(tmp_path, logs=lines) as node:
        assert list(job(tmp_path).logs(follow=True)) == [("worker-0@n1", "epoch 0"), ("server-0@n0", "bound")]
        assert node.asked == [("logs", {"job": JOB["id"], "follow": True})]


def test_cancel_is_a_request_that_may_be_repeated(tmp_path: Path) -> None:
    with FakeNode(tmp_path, cancel=value({"id": JOB["id"]})) as node:
        job(tmp_path).cancel()
        [(verb, args)] = node.asked
    assert verb == "cancel"
    assert args["job"] == JOB["id"]
    assert len(args["request"]) == 16


def test_an_export_without_parameters_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    no = refuse("refused", "it has written no parameters yet")
    with FakeNode(tmp_path, export=no), pytest.raises(RefusedError, match="no parameters yet"):
        job(tmp_path).export(tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_damaged_part_is_one_line_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"\xff" * 40)
    parts = value({"parts": [str(tmp_path / "part")], "step": 12})
    with FakeNode(tmp_path, export=parts), pytest.raises(DmiError, match="digits-1a2b cannot be written") as caught:
        job(tmp_path).export(tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()

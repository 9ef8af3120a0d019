"""One job as its owner sees it, up to the file that it leaves."""

from pathlib import Path

import pytest

from dmi.connection import Connection
from dmi.errors import DmiError, JobFailedError, NoNodeError, RefusedError, UnknownJobError
from dmi.job import Job
from tests.sdk.fake_node import JOB, Client, FakeNode, items, refuse, value


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
    lines = items(_logged("worker-0@n1", "epoch 0"), _logged("server-0@n0", "bound"))
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


def _logged(worker: str, line: str, offset: int = 0) -> dict[str, object]:
    return {"worker": worker, "line": line, "log": f"1/1/{worker}", "offset": offset}


def test_logs_go_on_from_another_node_where_one_is_gone(tmp_path: Path) -> None:
    """From the very place in each log, and without an end that is none."""

    def first(client: Client, _: object) -> object:
        client.send({"item": _logged("worker-0@n1", "one", 4)})
        client.send({"item": _logged("worker-1@n2", "other", 6)})
        raise ConnectionResetError  # it is killed

    homes = [tmp_path / name for name in ("n0", "n1")]
    for home in homes:
        home.mkdir()
        (home / "state.sqlite").touch()
    with FakeNode(homes[1], logs=items(_logged("worker-0@n1", "two", 8))) as second:
        with FakeNode(homes[0], logs=first):
            logs = job(tmp_path).logs(follow=True)
            seen = [next(logs), next(logs)]
        seen += list(logs)
        assert second.asked[-1][1]["offsets"] == {"1/1/worker-0@n1": 4, "1/1/worker-1@n2": 6}
    assert [line for _, line in seen] == ["one", "other", "two"]


def test_without_another_node_it_is_told_that_this_one_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmi.connection._AGAIN_S", 0.3)

    def killed(client: Client, _: object) -> object:
        client.send({"item": JOB | {"state": "running"}})
        raise ConnectionResetError

    with FakeNode(tmp_path, events=killed):
        events = job(tmp_path).events()
        assert next(events)["state"] == "running"
    with pytest.raises(NoNodeError):
        next(events)

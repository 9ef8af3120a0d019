"""``await`` says the same as the blocking client, and a task that is cancelled lets go."""

import asyncio
import inspect
import threading
from pathlib import Path

import pytest

import dmi
from dmi import job as blocking_job
from dmi import mesh as blocking_mesh
from dmi.errors import JobFailedError, NoNodeError
from dmi.infer import client as blocking_client
from dmi.models import library as blocking_library
from tests.sdk.fake_node import JOB, Client, FakeNode, items, value


@pytest.mark.parametrize(
    ("blocking", "awaited"),
    [
        (blocking_mesh.Mesh, dmi.aio.Mesh),
        (blocking_job.Job, dmi.aio.Job),
        (blocking_client.Inference, dmi.aio.Inference),
        (blocking_library.Models, dmi.aio.Models),
    ],
)
def test_it_has_every_call_with_the_same_parameters(blocking: type, awaited: type) -> None:
    missing = {name for name in vars(blocking) if not name.startswith("_")} - set(vars(awaited)) - {"judge"}
    assert not missing
    for name in vars(awaited):
        if not name.startswith("_"):
            ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (awaited, blocking))
            assert ours.parameters == theirs.parameters, name


async def test_a_job_from_its_submission_to_its_end(tmp_path: Path) -> None:
    def submit(client: Client, _: object) -> object:
        client.send({"need": []})
        return {"id": JOB["id"]}

    (tmp_path / "train.py").write_text("")
    running = JOB | {"state": "running"}
    with FakeNode(tmp_path, submit=submit, jobs=value([running]), events=items(running, JOB)):
        mesh = await dmi.aio.connect(tmp_path)
        job = await mesh.submit(tmp_path / "train.py", workers=2)
        assert [event["state"] async for event in job.events()] == ["running", "succeeded"]
        assert await job.wait() == JOB


async def test_a_failure_is_raised(tmp_path: Path) -> None:
    failed = JOB | {"state": "failed"}
    why = {"job": JOB["id"], "state": "failed", "sentence": "no luck", "detail": None}
    with FakeNode(tmp_path, jobs=value([failed]), events=items(failed), why=value(why)):
        job = await (await dmi.aio.connect(tmp_path)).job(str(JOB["id"]))
        with pytest.raises(JobFailedError, match="no luck"):
            await job.wait()


async def test_no_node_is_raised(tmp_path: Path) -> None:
    with pytest.raises(NoNodeError):
        await dmi.aio.connect(tmp_path)


def test_a_cancelled_wait_does_not_hold_the_loop(tmp_path: Path) -> None:
    """``asyncio.run`` joins its threads: one that waited for a quiet mesh would keep the program from ending."""
    gone = threading.Event()

    def watch(client: Client, _: object) -> None:
        client.send({"item": {"term": 1}})
        assert client.wait_until_gone()
        gone.set()

    async def look(seen: list[object]) -> None:
        async for status in (await dmi.aio.connect(tmp_path)).watch():
            seen.append(status)  # noqa: PERF401 (one by one is the point)

    async def main() -> list[object]:
        seen: list[object] = []
        task = asyncio.create_task(look(seen))
        async with asyncio.timeout(10):
            while not seen:
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    with FakeNode(tmp_path, watch=watch):
        assert asyncio.run(main()) == [{"term": 1}]
        assert gone.wait(10)

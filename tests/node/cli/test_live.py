"""What a terminal shows, drawn on consoles that record it, and once on a real one."""

import os
import pty
import subprocess
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dmi_node.cli import live
from tests.mesh.local import BIN, clean_environment
from tests.sdk.fake_node import JOB, Client, FakeNode, items, value

RUNNING = JOB | {"state": "running", "step": 131, "steps": 144, "samples_per_second": 1811.3, "loss": 0.01641}
QUEUED = JOB | {"state": "queued", "step": None, "steps": None, "loss": None}
WIDTHS = pytest.mark.parametrize("width", [80, 120])


def member(index: int, state: str = "alive", name: str = "n{}", job: str | None = "digits-1a2b") -> dict[str, Any]:
    roles = [{"job": job, "role": f"{kind}-{index}", "pid": 41} for kind in ("worker", "server")] if job else []
    return {
        "name": name.format(index),
        "id": f"{index:016x}",
        "state": state,
        "address": f"127.0.1.{index + 1}:44980",
        "voter": True,
        "roles": roles,
        "pid": 22808 + index,
        "version": "0.1.0",
    }


def status(**fields: Any) -> dict[str, Any]:
    return {
        "mesh": "1152368d4fa207ce",
        "node": "n0",
        "coordinator": "n1",
        "term": 2,
        "quorum": True,
        "quorum_reason": None,
        "refused": {},
        "members": [member(0), member(1), member(2)],
        "deployments": [],
        "jobs": [RUNNING],
    } | fields


LOST = status(
    quorum=False,
    coordinator=None,
    quorum_reason="no quorum: only 1 of 3 voters can be reached; n1, n2 must come back",
    members=[member(0), member(1, "dead"), member(2, "suspect")],
)


def drawn(picture: Any, width: int) -> str:
    """The picture as text, without the blanks at the ends of lines."""
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True, highlight=False)
    console.print(picture)
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    return "".join(f"{line.rstrip()}\n" for line in lines)


@WIDTHS
def test_a_job_that_runs(width: int) -> None:
    assert drawn(live.of_job(RUNNING, status(), ""), width) == (
        "digits-1a2b running: step 131 of 144, 1,811 samples/s, loss 0.0164\n"
        "━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━\n"
        "\n"
        "node  state  leads  works     serves\n"
        "n0    alive  job    worker-0  server-0\n"
        "n1    alive  mesh   worker-1  server-1\n"
        "n2    alive  -      worker-2  server-2\n"
    )


@WIDTHS
def test_a_job_that_waits_says_why_and_nobody_plays_a_part(width: int) -> None:
    seen = status(members=[member(index, job=None) for index in range(3)])
    assert drawn(live.of_job(QUEUED, seen, "waiting for 3 nodes, 2 are alive"), width) == (
        "digits-1a2b queued\nwaiting for 3 nodes, 2 are alive\n"
    )


@WIDTHS
def test_a_job_whose_mesh_has_no_quorum(width: int) -> None:
    assert drawn(live.of_job(RUNNING, LOST, ""), width).splitlines()[2:] == [
        "no quorum: only 1 of 3 voters can be reached; n1, n2 must come back",
        "",
        "node  state    leads  works     serves",
        "n0    alive    job    worker-0  server-0",
        "n1    dead     -      worker-1  server-1",
        "n2    suspect  -      worker-2  server-2",
    ]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_job_that_has_ended_has_no_processes(state: str) -> None:
    text = drawn(live.of_job(RUNNING | {"state": state, "samples_per_second": None}, status(), ""), 80)
    assert text.startswith(f"digits-1a2b {state}: step 131 of 144, loss 0.0164\n")
    assert len(text.splitlines()) == 2


def test_only_who_does_something_for_the_job_is_shown() -> None:
    others = [member(index, job="other-9f9f9f") for index in range(1, 40)]
    text = drawn(live.of_job(RUNNING, status(coordinator="n7", members=[member(0), *others]), ""), 80)
    assert [line.split() for line in text.splitlines()[4:]] == [
        ["n0", "alive", "job", "worker-0", "server-0"],
        ["n7", "alive", "mesh", "-", "-"],
    ]


@WIDTHS
def test_the_mesh(width: int) -> None:
    assert drawn(live.of_mesh(status(refused={"stranger": 3, "garbage": 1})), width) == (
        "mesh 1152368d4fa207ce: coordinator n1, term 2; 1 of 3 voters can be lost now\n"
        "\n"
        "job          state    step        samples/s  loss\n"
        "digits-1a2b  running  131 of 144  1,811      0.0164\n"
        "\n"
        "node  state  address          voter  pid    roles\n"
        "n0    alive  127.0.1.1:44980  yes    22808  server-0, worker-0\n"
        "n1    alive  127.0.1.2:44980  yes    22809  server-1, worker-1\n"
        "n2    alive  127.0.1.3:44980  yes    22810  server-2, worker-2\n"
        "\n"
        "refused: 1 garbage, 3 stranger\n"
    )


@WIDTHS
def test_a_mesh_without_a_quorum_begins_with_it(width: int) -> None:
    text = drawn(live.of_mesh(LOST), width)
    assert "no quorum: only 1 of 3 voters can be reached; n1, n2 must come back" in " ".join(text.split("\n", 2)[:2])


def test_a_reason_is_below_the_table_and_keeps_its_brackets() -> None:
    reason = "worker-1 on n2 failed (raised): RuntimeError: [rank 1] [red]mat1 and mat2 cannot be multiplied[/red]"
    failed = RUNNING | {"id": "broken-9f", "state": "failed", "reason": reason}
    done = JOB | {"reason": "succeeded after 12 steps"}
    text = drawn(live.of_mesh(status(jobs=[failed, done])), 80)
    assert f"broken-9f: {reason}" in " ".join(text.split())
    assert "succeeded after" not in text
    assert "broken-9f    failed     131 of 144" in text


def test_what_job_code_chose_moves_no_cursor() -> None:
    failed = RUNNING | {"state": "failed", "reason": "\x1b[2Jgone\x1b[31m\rred"}
    console = Console(width=80, file=StringIO(), force_terminal=True)
    console.print(live.of_mesh(status(jobs=[failed])))
    assert isinstance(console.file, StringIO)
    assert "\x1b[2J" not in console.file.getvalue()
    assert "\r" not in console.file.getvalue()


def test_of_many_jobs_that_have_ended_the_last_are_shown() -> None:
    old = [JOB | {"id": f"old-{index}"} for index in range(20)]
    text = drawn(live.of_mesh(status(jobs=[RUNNING, *old])), 80)
    assert [line.split()[0] for line in text.splitlines()[3:9]] == ["digits-1a2b", *(f"old-{i}" for i in range(15, 20))]
    assert "and 15 that ended before: `dmi-node jobs`" in text


@WIDTHS
def test_long_names_are_not_cut(width: int) -> None:
    name, job = "gpu-host-{:02}.rack-7.first-floor.example-datacentre", "transformer-with-a-name-of-63-" + "x" * 40
    seen = status(members=[member(index, name=name, job=job) for index in range(3)], jobs=[RUNNING | {"id": job}])
    for picture in (live.of_mesh(seen), live.of_job(seen["jobs"][0], seen, "")):
        together = drawn(picture, width)
        assert "…" not in together
        assert "gpu-host-02" in together
        assert "server-2" in "".join(together.split())


def screen(*words: str, home: Path, both: bool = True) -> tuple[str, str, int]:
    """What a terminal of 80 columns was sent, what came on standard output if that is a pipe, and the exit code."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [BIN / "dmi-node", *words, "--home", home],
        env=clean_environment(TERM="xterm", COLUMNS="80", LINES="24"),
        stdin=subprocess.DEVNULL,
        stdout=slave if both else subprocess.PIPE,
        stderr=slave,
    ) as process:
        os.close(slave)
        late = threading.Timer(60, process.kill)
        late.start()
        try:
            shown = b"".join(iter(lambda: read(master), b""))
            out = process.stdout.read() if process.stdout is not None else b""
            return shown.decode(), out.decode(), process.wait()
        finally:
            late.cancel()
            os.close(master)


def read(terminal: int) -> bytes:
    """The next that was written; nothing once the last process has closed it."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_on_a_terminal_one_picture_takes_the_place_of_the_other(tmp_path: Path) -> None:
    with FakeNode(tmp_path, watch=items(status(), status(term=3))):
        shown, _, code = screen("status", "--watch", home=tmp_path)
    assert code == 0
    assert "\x1b[1A" in shown
    assert "term 3" in shown.rpartition("\x1b[1A")[2]
    assert shown.rstrip().endswith("\x1b[?25h")


def test_waiting_draws_on_standard_error_and_says_the_id_on_standard_output(tmp_path: Path) -> None:
    def submitted(client: Client, _: object) -> object:
        client.send({"need": []})
        return {"id": JOB["id"]}

    (tmp_path / "train.py").write_text("")
    seen = items(status(jobs=[]), status(jobs=[QUEUED]), status(), status(jobs=[JOB]))
    sentence = {"job": JOB["id"], "state": "succeeded", "sentence": "all 12 steps are done", "detail": None}
    with FakeNode(tmp_path, submit=submitted, watch=seen, why=value(sentence)):
        shown, out, code = screen("submit", str(tmp_path / "train.py"), "--wait", home=tmp_path, both=False)
    assert (code, out) == (0, "digits-1a2b\n")
    assert "digits-1a2b running: step 131 of 144, 1,811 samples/s, loss 0.0164" in shown
    assert "digits-1a2b succeeded: step 12 of 12, loss 0.2500" in shown
    assert shown.splitlines()[-1].removeprefix("\x1b[?25h") == "digits-1a2b: all 12 steps are done"


@pytest.mark.parametrize("words", [("status", "--watch"), ("status",), ("jobs",), ("members",), ("roles",)])
def test_where_there_is_no_terminal_there_are_no_codes(tmp_path: Path, words: tuple[str, ...]) -> None:
    seen = status()
    answers = {"status": value(seen), "jobs": value(seen["jobs"]), "members": value(seen["members"])}
    with FakeNode(tmp_path, watch=items(seen, seen), roles=value([]), **answers):
        done = subprocess.run(
            [BIN / "dmi-node", *words, "--home", tmp_path],
            env=clean_environment(TERM="xterm", FORCE_COLOR="1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        )
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\r" not in done.stdout

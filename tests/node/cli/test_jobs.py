"""Verbs about jobs, against a node that answers from a table."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from dmi.job import Job
from dmi_node.cli import jobs
from dmi_node.cli.main import cli
from tests.sdk.fake_node import JOB, Client, FakeNode, items, refuse, value

WHY = {"job": JOB["id"], "state": "succeeded", "sentence": "all 12 steps are done", "detail": None}
FAILED = {"job": JOB["id"], "state": "failed", "sentence": "worker-0 on n1 raised", "detail": "Traceback\n  planted"}


def invoke(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home), *arguments])


def submitted(client: Client, _: object) -> object:
    client.send({"need": []})
    return {"id": JOB["id"]}


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "train.py").write_text("")
    return str(tmp_path / "train.py")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["--lr", "0.1"], "submit has no option --lr; if it is the script's, write it after `--`"),
        (["-1"], "after `--`"),
        (["--threads", "2"], "--threads is an option of submit and of train.py"),
        (["--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set here"),
    ],
)
def test_whose_an_option_is(tmp_path: Path, script: str, typed: list[str], hint: str) -> None:
    Path(script).write_text("parser.add_argument(\n    '--threads', type=int)")
    shown = invoke(tmp_path, "submit", script, *typed)
    assert shown.exit_code == 2
    assert hint in " ".join(shown.output.split())


def test_variables_an_interpreter_and_a_root_travel(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret=1")
    with FakeNode(tmp_path, submit=submitted) as node:
        options = [
            "--env",
            "A=b=c",
            "--env",
            "TOKEN",
            "--env",
            "EMPTY=",
            "--python",
            "/opt/py",
            "--root",
            str(tmp_path),
        ]
        shown = invoke(tmp_path, "submit", *options, script)
        spec = node.asked[-1][1]["spec"]
    assert shown.exit_code == 0
    assert spec["env"] == [["A", "b=c"], ["TOKEN", "secret=1"], ["EMPTY", ""]]
    assert (spec["python"], spec["script"]) == ("/opt/py", "train.py")


def test_an_argument_that_is_no_text_is_refused_in_a_line(tmp_path: Path, script: str) -> None:
    with FakeNode(tmp_path, submit=submitted):
        shown = invoke(tmp_path, "submit", script, "--", "caf\udce9")
    assert shown.exit_code == 2
    assert "is no UTF-8 text" in shown.output


def test_submit_prints_the_id_and_passes_what_follows_the_dashes(tmp_path: Path, script: str) -> None:
    with FakeNode(tmp_path, submit=submitted) as node:
        shown = invoke(tmp_path, "submit", script, "--workers", "2", "--name", "x", "--", "--epochs", "3", "--wait")
        spec = node.asked[-1][1]["spec"]
    assert shown.output == "digits-1a2b\n"
    assert (spec["args"], spec["workers"], spec["name"]) == (["--epochs", "3", "--wait"], 2, "x")


def test_submit_and_wait_shows_progress_beside_the_id(tmp_path: Path, script: str) -> None:
    running = JOB | {"state": "running", "step": 3, "samples_per_second": 1234.5, "loss": 0.5}
    with FakeNode(tmp_path, submit=submitted, events=items(running, JOB), why=value(WHY)):
        shown = invoke(tmp_path, "submit", script, "--wait", "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == {"id": "digits-1a2b"}
    assert "running: step 3 of 12, 1,234 samples/s, loss 0.5000" in shown.stderr
    assert "all 12 steps are done" in shown.stderr


def test_progress_is_a_line_a_second_unless_the_state_changes(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = [JOB | {"state": "running", "step": step} for step in range(9)]
    with FakeNode(tmp_path, submit=submitted, events=items(*running, JOB), why=value(WHY)):
        monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=count(0, 0.3).__next__))
        shown = invoke(tmp_path, "submit", script, "--wait")
    told = [line.partition(",")[0] for line in shown.stderr.splitlines()[:-1]]
    assert told == [
        "running: step 0 of 12",
        "running: step 4 of 12",
        "running: step 8 of 12",
        "succeeded: step 12 of 12",
    ]


def test_whoever_stops_waiting_hears_that_the_job_goes_on(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Job) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "events", interrupted)
    with FakeNode(tmp_path, submit=submitted):
        shown = invoke(tmp_path, "submit", script, "--wait")
    assert (shown.exit_code, shown.stdout) == (1, "digits-1a2b\n")
    assert shown.stderr.startswith("digits-1a2b goes on: `dmi-node logs digits-1a2b -f` follows it")


def test_waiting_for_a_failure_ends_with_1_and_its_cause(tmp_path: Path, script: str) -> None:
    with FakeNode(tmp_path, submit=submitted, events=items(JOB | {"state": "failed"}), why=value(FAILED)):
        shown = invoke(tmp_path, "submit", script, "--wait")
    assert shown.exit_code == 1
    assert "planted" in shown.stderr
    assert shown.stderr.splitlines()[-1] == "digits-1a2b: worker-0 on n1 raised"


@pytest.mark.parametrize("text", [None, "def f(:\n"])
def test_a_script_that_cannot_be_is_exit_2_and_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    with FakeNode(tmp_path):
        shown = invoke(tmp_path, "submit", str(tmp_path / "bad.py"))
    assert shown.exit_code == 2
    assert len(shown.stderr.splitlines()) == 1
    assert "bad.py" in shown.stderr


@pytest.mark.parametrize("option", ["--workers", "--servers", "--leaves", "--threads"])
def test_a_number_that_cannot_be_is_wrong_usage(tmp_path: Path, script: str, option: str) -> None:
    with FakeNode(tmp_path):
        assert invoke(tmp_path, "submit", script, option, "0").exit_code == 2


def test_logs_are_prefixed_by_their_process(tmp_path: Path) -> None:
    line = {"worker": "worker-0@n1", "line": "epoch 0 loss 1.0"}
    with FakeNode(tmp_path, why=value(WHY), logs=items(line | {"log": "1/1/worker-0", "offset": 9})) as node:
        assert invoke(tmp_path, "logs", "digits").output == "worker-0@n1: epoch 0 loss 1.0\n"
        assert node.asked[-1] == ("logs", {"job": JOB["id"], "follow": False})
        assert json.loads(invoke(tmp_path, "logs", "-f", "digits", "--json").output) == line
        assert node.asked[-1] == ("logs", {"job": JOB["id"], "follow": True})


def test_a_node_whose_lines_are_missing_is_told_beside_them(tmp_path: Path) -> None:
    away, line = {"worker": "n2", "line": "[n2 is dead]"}, {"worker": "worker-0@n1", "line": "epoch 0"}
    with FakeNode(tmp_path, why=value(WHY), logs=items(away, line | {"log": "1/1/worker-0", "offset": 9})):
        shown = invoke(tmp_path, "logs", "digits", "--worker", "worker-0")
        plain = invoke(tmp_path, "logs", "digits", "--json", "--worker", "worker-0").stdout.splitlines()
        nobody = invoke(tmp_path, "logs", "digits", "--json", "--worker", "worker-7")
    assert nobody.stderr == "'worker-7' has printed nothing in digits; who has: worker-0@n1\n"
    assert (shown.stdout, shown.stderr) == ("worker-0@n1: epoch 0\n", "n2: [n2 is dead]\n")
    assert [json.loads(each) for each in plain] == [away, line]


PRINTED = [
    {"worker": process, "line": f"I am {process}", "log": f"1/1/{process}", "offset": 9}
    for process in ("worker-0@n1", "worker-1@n2", "worker-10@n1", "server-0@n1", "worker-0@n3")
]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("worker-0", ["worker-0@n1", "worker-0@n3"]),
        ("worker-0@n3", ["worker-0@n3"]),
        ("worker-1", ["worker-1@n2"]),
        ("server-0", ["server-0@n1"]),
    ],
)
def test_logs_of_one_process(tmp_path: Path, name: str, shown: list[str]) -> None:
    with FakeNode(tmp_path, why=value(WHY), logs=items(*PRINTED)):
        found = invoke(tmp_path, "logs", "digits", "--worker", name)
        plain = invoke(tmp_path, "logs", "digits", "-f", "--worker", name, "--json")
    assert found.output == "".join(f"{process}: I am {process}\n" for process in shown)
    assert [json.loads(line)["worker"] for line in plain.output.splitlines()] == shown
    assert (found.exit_code, plain.exit_code) == (0, 0)


def test_logs_of_a_process_that_printed_nothing_name_those_that_did(tmp_path: Path) -> None:
    with FakeNode(tmp_path, why=value(WHY), logs=items(*PRINTED[:2])):
        shown = invoke(tmp_path, "logs", "digits", "--worker", "worker-7")
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr == "'worker-7' has printed nothing in digits; who has: worker-0@n1, worker-1@n2\n"
    with FakeNode(tmp_path / "silent", why=value(WHY), logs=items()):
        assert invoke(tmp_path / "silent", "logs", "digits").exit_code == 0
        assert "who has: nobody" in invoke(tmp_path / "silent", "logs", "digits", "--worker", "worker-0").stderr


def test_why_shows_the_sentence_and_the_traceback(tmp_path: Path) -> None:
    with FakeNode(tmp_path, why=value(FAILED)):
        shown = invoke(tmp_path, "why", "digits")
        assert json.loads(invoke(tmp_path, "why", "digits", "--json").output) == FAILED
    assert shown.exit_code == 0
    assert shown.output == "digits-1a2b is failed: worker-0 on n1 raised\n\nTraceback\n  planted\n"


@pytest.mark.parametrize("verb", [("why",), ("logs",), ("cancel",), ("export",)])
def test_an_unknown_job_is_exit_1_and_one_line(tmp_path: Path, verb: tuple[str, ...]) -> None:
    rest = ("out.safetensors",) if verb == ("export",) else ()
    with FakeNode(tmp_path, why=refuse("unknown", "no job is named 'digts'; did you mean 'digits'?")):
        shown = invoke(tmp_path, *verb, "digts", *rest)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr == "no job is named 'digts'; did you mean 'digits'?\n"


def test_cancel_asks_for_the_job_by_its_id(tmp_path: Path) -> None:
    with FakeNode(tmp_path, why=value(WHY), cancel=value({"id": JOB["id"]})) as node:
        assert invoke(tmp_path, "cancel", "digits").exit_code == 0
        assert node.asked[-1][1]["job"] == JOB["id"]

"""Which node is asked, what becomes of its refusals, and that nothing waits for ever."""

import os
import threading
from pathlib import Path

import pytest

import dmi.connection
from dmi.connection import Connection, Conversation, default_home, user_home
from dmi.errors import DmiError, NoNodeError, NoQuorumError, RefusedError, UnknownJobError, UsageError
from tests.sdk.fake_node import Client, FakeNode, items, refuse, value


def test_a_question_has_an_answer(tmp_path: Path) -> None:
    with FakeNode(tmp_path, members=value([{"name": "n0"}])) as node:
        assert Connection(tmp_path).ask("members", of="all") == [{"name": "n0"}]
        assert node.asked == [("members", {"of": "all"})]


def test_a_home_may_lie_deeper_than_a_socket_address_is_long(tmp_path: Path) -> None:
    home = tmp_path / ("d" * 100) / ("e" * 100)
    with FakeNode(home):
        assert Connection(home).ask("version") == {"version": "9.9"}


def test_a_parent_of_homes_means_its_first_that_answers(tmp_path: Path) -> None:
    for index in (0, 1, 2, 10):
        (tmp_path / f"n{index}").mkdir()
        (tmp_path / f"n{index}" / "state.sqlite").touch()
    with FakeNode(tmp_path / "n10", version=value("n10")), FakeNode(tmp_path / "n2", version=value("n2")):
        assert Connection(tmp_path).ask("version") == "n2"


def test_the_environment_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMI_HOME", str(tmp_path))
    assert default_home() == tmp_path
    with FakeNode(tmp_path):
        assert Connection().ask("version") == {"version": "9.9"}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("unknown", UnknownJobError),
        ("refused", RefusedError),
        ("usage", UsageError),
        ("no-quorum", NoQuorumError),
        ("internal", DmiError),
        ("of a later version", DmiError),
    ],
)
def test_a_refusal_is_raised_with_its_line(tmp_path: Path, kind: str, error: type[DmiError]) -> None:
    with FakeNode(tmp_path, why=refuse(kind, "because")), pytest.raises(error, match=r"^because$") as caught:
        Connection(tmp_path).ask("why")
    assert type(caught.value) is error


def test_a_home_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoNodeError, match=r"no node has its home at .*/nowhere: start one"):
        Connection(tmp_path / "nowhere").ask("version")


def test_a_home_that_is_no_directory_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoNodeError, match=r"cannot be opened \(Not a directory\)"):
        Connection(tmp_path / "file").ask("version")


def test_a_home_whose_node_is_down_is_named(tmp_path: Path) -> None:
    with FakeNode(tmp_path):
        pass
    with pytest.raises(NoNodeError, match=r"no node answers at .*refused.*is it running"):
        Connection(tmp_path).ask("version")


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\0\x05abc", b"\0\0\0\x01\xc1", b"\xff\xff\xff\xffGET / HTTP"])
def test_nonsense_or_a_hung_up_line_is_no_node(tmp_path: Path, said: bytes) -> None:
    def answer(client: Client, _: object) -> None:
        client.send_raw(said)

    with FakeNode(tmp_path, status=answer), pytest.raises(NoNodeError):
        Connection(tmp_path).ask("status")


def test_an_answer_has_a_deadline(tmp_path: Path) -> None:
    gone = threading.Event()

    def answer(client: Client, _: object) -> None:
        assert client.wait_until_gone()
        gone.set()

    with FakeNode(tmp_path, status=answer):
        with Conversation(tmp_path) as talk:
            talk.send({"verb": "status", "args": {}})
            with pytest.raises(NoNodeError, match=r"did not answer within 0\.05 s"):
                talk.receive(0.05)
        assert gone.wait(10)


def test_a_stream_ends_when_the_node_says_so(tmp_path: Path) -> None:
    with FakeNode(tmp_path, watch=items(1, 2)) as node:
        stream = Connection(tmp_path).stream("watch", str)
        assert node.asked == []
        assert list(stream) == ["1", "2"]
        assert list(stream) == []


def test_a_stream_may_be_refused_after_its_first_item(tmp_path: Path) -> None:
    def answer(client: Client, _: object) -> None:
        client.send({"item": 1})
        client.send({"error": {"kind": "no-quorum", "line": "they left"}})

    with FakeNode(tmp_path, watch=answer):
        stream = Connection(tmp_path).stream("watch", str)
        assert next(stream) == "1"
        with pytest.raises(NoQuorumError, match="they left"):
            next(stream)


def test_a_silent_node_that_still_answers_may_stay_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmi.connection, "_QUIET_S", 0.01)
    asked = threading.Event()

    def version(_: Client, __: object) -> object:
        asked.set()
        return "fine"

    def watch(client: Client, _: object) -> None:
        assert asked.wait(10)
        client.send({"item": "late"})

    with FakeNode(tmp_path, watch=watch, version=version):
        assert next(Connection(tmp_path).stream("watch", str)) == "late"


def test_a_node_that_no_longer_moves_ends_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmi.connection, "_QUIET_S", 0.01)
    over = threading.Event()

    def version(_: Client, __: object) -> None:
        assert not over.is_set()

    def watch(client: Client, _: object) -> None:
        assert client.wait_until_gone()
        over.set()

    with FakeNode(tmp_path, watch=watch, version=version):
        with pytest.raises(NoNodeError):
            next(Connection(tmp_path).stream("watch", str))
        assert over.wait(10)


def test_closing_a_stream_wakes_the_thread_that_waits_for_it(tmp_path: Path) -> None:
    waiting = threading.Event()
    seen: list[object] = []

    def watch(client: Client, _: object) -> None:
        waiting.set()
        assert client.wait_until_gone()

    with FakeNode(tmp_path, watch=watch):
        stream = Connection(tmp_path).stream("watch", str)

        def read() -> None:
            try:
                seen.extend(stream)
            except NoNodeError as error:
                seen.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert waiting.wait(10)
        stream.close()
        thread.join(10)
        assert not thread.is_alive()
        assert list(stream) == []


def test_a_user_without_a_home_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(UsageError, match="no home directory: name a folder with --home"):
        user_home()


def test_who_may_not_look_into_the_service_s_home_asks_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, beside = tmp_path / "lib", tmp_path / "run"
    home.mkdir()
    monkeypatch.setattr(dmi.connection, "SERVICE_HOME", home)
    monkeypatch.setattr(dmi.connection, "SERVICE_SOCKET", beside / "control.sock")
    monkeypatch.setattr(os, "access", lambda path, _: path != home)  # as for who is not root
    with FakeNode(beside):
        assert Connection(home).ask("version") == {"version": "9.9"}
        with pytest.raises(NoNodeError):
            Connection(tmp_path).ask("version")

"""A node that only has a control socket: what it answers is a table, what it was asked is a list."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from dmi_protocol.codec import pack, unpack

DEADLINE_S = 20.0
JOB = {
    "id": "digits-1a2b",
    "name": "digits",
    "kind": "training",
    "state": "succeeded",
    "generation": 1,
    "step": 12,
    "steps": 12,
    "samples_per_second": None,
    "loss": 0.25,
    "failed_inputs": None,
    "reason": None,
}


class Refuse(Exception):  # noqa: N818 (an order, not an error of ours)
    """Raised by an answer: the node refuses."""

    def __init__(self, kind: str, line: str) -> None:
        super().__init__(line)
        self.kind = kind


class Client:
    """The other end of one connection, as an answer sees it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(DEADLINE_S)
        self._connection = connection

    def send(self, value: object) -> None:
        body = pack(value)
        self._connection.sendall(len(body).to_bytes(4, "big") + body)

    def send_raw(self, data: bytes) -> None:
        self._connection.sendall(data)

    def receive(self) -> Any:
        return unpack(self._exactly(int.from_bytes(self._exactly(4), "big")))

    def wait_until_gone(self) -> bool:
        """True once the client has closed its end; ``TimeoutError`` when it does not."""
        return self._connection.recv(1) == b""

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._connection.recv(size - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data


Answer = Callable[[Client, dict[str, Any]], object]


class FakeNode:
    """Use it in a ``with``. An answer gives a value, or an iterator of items, or raises ``Refuse``, or None: it said all."""

    def __init__(self, home: Path, **answers: Answer) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Answer] = {"version": lambda _, __: {"version": "9.9"}, **answers}
        self._threads: list[threading.Thread] = []
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> "FakeNode":
        directory = os.open(self.home, os.O_RDONLY)
        self._door.bind(f"/proc/self/fd/{directory}/control.sock")
        os.close(directory)
        self._door.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._door.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, _hung_up_is_fine():
            client = Client(connection)
            request = client.receive()
            self.asked.append((request["verb"], request["args"]))
            try:
                answer = self.answers[request["verb"]](client, request["args"])
                if isinstance(answer, Iterator):
                    for item in answer:
                        client.send({"item": item})
                    client.send({"ok": None})
                elif answer is not None:
                    client.send({"ok": answer})
            except Refuse as refusal:
                client.send({"error": {"kind": refusal.kind, "line": str(refusal)}})


@contextmanager
def _hung_up_is_fine() -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        return


def value(answer: object) -> Answer:
    """Always the same answer."""
    return lambda _, __: answer


def items(*found: object) -> Answer:
    """A stream of these items, which then ends."""
    return lambda _, __: iter(found)


def refuse(kind: str, line: str) -> Answer:
    """Always this refusal."""

    def answer(_: Client, __: dict[str, Any]) -> object:
        raise Refuse(kind, line)

    return answer

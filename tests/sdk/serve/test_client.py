"""Where ``predict`` has its token from, and what it says where a gateway wants one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import dmi
from dmi.errors import RefusedError
from tests.sdk.fake_node import FakeNode, value

MODEL = {"name": "numbers", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}


class Gateway(BaseHTTPRequestHandler):
    """Lets in who shows the one token, and answers two ones."""

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if length is not None:
            self.send_header("Inference-Header-Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def is_let_in(self) -> bool:
        if self.headers.get("Authorization") == "Bearer right":
            return True
        said = "a token is wanted" if "Authorization" not in self.headers else "the token is not known here"
        self.answer(401, json.dumps({"error": said}).encode())
        return False

    def do_GET(self) -> None:
        if self.is_let_in():
            self.answer(200, json.dumps(MODEL).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.is_let_in():
            output = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
            head = json.dumps({"outputs": [output]}).encode()
            self.answer(200, head + b"\0\0\x80\x3f" * 2, len(head))

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def gateway(home: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with FakeNode(home, status=value({"deployments": [{"model": "numbers", "urls": [url]}]})):
            yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_token_is_found_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMI_TOKEN", raising=False)
    with gateway(tmp_path):
        assert dmi.connect(tmp_path, token="right").predict("numbers", [[1.0, 2.0]]).tolist() == [[1, 1]]
        assert dmi.connect(tmp_path).predict("numbers", [[1.0, 2.0]], token="right").tolist() == [[1, 1]]
        monkeypatch.setenv("DMI_TOKEN", "right\n")
        assert dmi.connect(tmp_path).predict("numbers", [[1.0, 2.0]]).tolist() == [[1, 1]]
        assert dmi.connect(tmp_path, token="wrong").predict("numbers", [[1.0, 2.0]], token="right").tolist() == [[1, 1]]


async def test_the_same_with_await(tmp_path: Path) -> None:
    with gateway(tmp_path):
        mesh = await dmi.aio.connect(tmp_path, token="right")
        assert (await mesh.predict("numbers", [[1.0, 2.0]])).tolist() == [[1, 1]]


def test_without_one_the_line_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMI_TOKEN", raising=False)
    with gateway(tmp_path) as url:
        with pytest.raises(RefusedError) as caught:
            dmi.connect(tmp_path).predict("numbers", [[1.0, 2.0]])
        for word in (url, "dmi-node token add", "connect(token=", "predict(token=", "DMI_TOKEN"):
            assert word in str(caught.value)
        with pytest.raises(RefusedError, match="not known here"):
            dmi.connect(tmp_path, token="wrong").predict("numbers", [[1.0, 2.0]])

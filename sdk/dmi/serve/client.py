"""Deployments as their owner sees them, and asking one for predictions."""

import http.client
import json
import os
import random
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dmi.connection import Connection
from dmi.errors import DmiError, JobFailedError, RefusedError, UnknownJobError
from dmi.job import Job
from dmi.serve.arrays import is_tensor, read, written

_READY = "running"
_LENGTH = "Inference-Header-Content-Length"
_WHERE = (
    "this gateway wants a token: `dmi-node token add NAME` makes one; give it as connect(token=...), as predict(token=...), or "
    "in DMI_TOKEN"
)
_EXTRA_S = 5.0
"""An answer, or a refusal, comes within its time and so much more, or the gateway is gone."""


class NotAnsweredError(DmiError):
    """No gateway could answer. The text is what the last one said."""


class Deployment(Job):
    """A model that is served. Made by ``Mesh.serve``."""

    def __init__(self, connection: Connection, identity: str, model: str, version: int) -> None:
        super().__init__(connection, identity)
        self.model = model
        self.version = version

    def ready(self) -> list[str]:
        """Wait until it serves; gives the URLs of its gateways. Raises ``JobFailedError`` when it cannot."""
        job = self.status()
        if job["state"] != _READY:
            for job in self.events():
                if job["state"] == _READY:
                    break
        if job["state"] != _READY:
            raise JobFailedError(self.why()["sentence"])
        return self.urls()

    def urls(self) -> list[str]:
        """Where its gateways are now."""
        found = next((each for each in self._connection.ask("status")["deployments"] if each["job"] == self.id), None)
        return list(found["urls"]) if found is not None else []

    def wait(self) -> dict[str, Any]:
        """Wait until somebody ends it."""
        last = self.status()
        for event in self.events():
            last = event
        if last["state"] == "failed":
            raise JobFailedError(self.why()["sentence"])
        return last


def serve(connection: Connection, model: str, **options: Any) -> Deployment:
    """See ``Mesh.serve``."""
    spec = {"model": model} | {name: value for name, value in options.items() if value is not None}
    found = connection.ask("serve", request=secrets.token_hex(8), spec=spec)
    return Deployment(connection, found["id"], found["model"], found["version"])


def predict(
    connection: Connection,
    name: str,
    inputs: Any,
    *,
    version: int | None = None,
    timeout_s: float = 30.0,
    token: str | None = None,
) -> Any:
    """See ``Mesh.predict``."""
    deployments = connection.ask("status")["deployments"]
    found = next((each for each in deployments if each["model"] == name), None)
    if found is None:
        raise UnknownJobError(f"nothing is served as {name!r}; `dmi-node status` shows what is")
    urls = list(found["urls"])
    random.shuffle(urls)
    where = f"/v2/models/{name}" + (f"/versions/{version}" if version is not None else "")
    asking = _Asking(urls, where, timeout_s, token or os.environ.get("DMI_TOKEN", "").strip())
    named = inputs if isinstance(inputs, Mapping) else {asking.only_input(): inputs}
    outputs = asking.infer(named, as_tensors=any(map(is_tensor, named.values())))
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


class _Asking:
    """One gateway after another, until one answers. A refusal of what is asked is an answer."""

    def __init__(self, urls: list[str], where: str, timeout_s: float, token: str) -> None:
        self._who = {"Authorization": f"Bearer {token}"} if token else {}
        self._urls = urls
        self._where = where
        self._timeout_s = timeout_s

    def only_input(self) -> str:
        """The name of the model's one input."""
        names = [each["name"] for each in json.loads(self._ask("GET", self._where, b"", {})[1])["inputs"]]
        if len(names) != 1:
            raise RefusedError(f"the model has {len(names)} inputs: give a dict of {', '.join(names)}")
        return str(names[0])

    def infer(self, inputs: Mapping[str, Any], *, as_tensors: bool) -> dict[str, Any]:
        """Outputs by name, as NumPy arrays or as tensors."""
        described, frames = [], []
        for name, value in inputs.items():
            datatype, shape, data = written(name, value)
            size = {"binary_data_size": len(data)}
            described.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
            frames.append(data)
        head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
        headers = {_LENGTH: str(len(head)), "Timeout": str(self._timeout_s)}
        said, body = self._ask("POST", f"{self._where}/infer", b"".join([head, *frames]), headers)
        length = int(said.get(_LENGTH.lower(), len(body)))
        rest, found = memoryview(body)[length:], dict[str, Any]()
        for output in json.loads(body[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = read(output["datatype"], output["shape"], rest[:size], as_tensor=as_tensors)
            rest = rest[size:]
        return found

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[dict[str, str], bytes]:
        last = "it has no gateway now"
        for url in self._urls:
            at = urlsplit(url)
            connection = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
            line = connection(at.hostname or "", at.port, timeout=self._timeout_s + _EXTRA_S)
            try:
                line.request(method, path, body, headers | self._who)
                answer = line.getresponse()
                found = answer.read()
            except (OSError, http.client.HTTPException) as error:
                last = f"{url}: {error}"
                continue
            finally:
                line.close()
            if answer.status == 200:
                return {name.lower(): value for name, value in answer.getheaders()}, found
            text = _error_of(found)
            if answer.status == 401:
                raise RefusedError(f"{url}: {_WHERE if not self._who else text}")
            if answer.status not in {429, 503, 504}:
                raise RefusedError(text)
            last = f"{url}: {text}"
        raise NotAnsweredError(last)


def _error_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")

"""One job, as the one who submitted it sees it."""

import secrets
from pathlib import Path
from typing import Any

from dmi.connection import Connection, Stream
from dmi.errors import DmiError, JobFailedError, UnknownJobError

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Job:
    """Made by ``Mesh.submit`` and ``Mesh.job``."""

    def __init__(self, connection: Connection, identity: str) -> None:
        self._connection = connection
        self.id = identity
        self.left_at_home: tuple[str, ...] = ()
        """Of a job that was just submitted: folders below those that were named that did not travel."""

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> dict[str, Any]:
        """The job's object of ``status``. Raises ``UnknownJobError``."""
        for job in self._connection.ask("jobs"):
            if job["id"] == self.id:
                found: dict[str, Any] = job
                return found
        raise UnknownJobError(f"no job is named {self.id!r}; `dmi-node jobs` lists them")

    def events(self) -> Stream[dict[str, Any]]:
        """The job's object whenever it changes, until the job has ended."""
        return self._connection.stream("events", dict, dict, job=self.id)

    def wait(self) -> dict[str, Any]:
        """Wait for the end. Raises ``JobFailedError`` when it is not a success."""
        last = self.status()
        for event in self.events():
            last = event
        return self.judge(last)

    def judge(self, last: dict[str, Any]) -> dict[str, Any]:
        """``last``, the last of the events, when it is a success. Raises ``JobFailedError`` when it is not."""
        if last["state"] != "succeeded":
            raise JobFailedError(self.why()["sentence"])
        return last

    def logs(self, *, follow: bool = False) -> Stream[tuple[str, str]]:
        """(process, line) of what the job printed; with ``follow`` until it has ended. (node, line) says of a node that its
        processes' lines cannot be had."""
        offsets: dict[str, int] = {}

        def line(item: dict[str, Any]) -> tuple[str, str]:
            if "log" in item:
                offsets[item["log"]] = item["offset"]
            return item["worker"], item["line"]

        return self._connection.stream("logs", line, lambda: {"offsets": offsets}, job=self.id, follow=follow)

    def why(self) -> dict[str, Any]:
        """Why the job is in its state: ``{"job", "state", "sentence", "detail"}``."""
        found: dict[str, Any] = self._connection.ask("why", job=self.id)
        return found

    def remove(self) -> None:
        """Forget it, with its checkpoints and results. Raises ``RefusedError`` while it goes on."""
        self._connection.ask("job-rm", job=self.id, request=secrets.token_hex(8))

    def cancel(self) -> None:
        """End it. Raises ``RefusedError`` when it has ended already."""
        self._connection.ask("cancel", job=self.id, request=secrets.token_hex(8))

    def export(self, path: str | Path) -> None:
        """Write the trained model: safetensors, or with a ``.pt`` suffix a torch file with both state dicts."""
        parts = self._connection.ask("export", job=self.id)["parts"]
        from dmi_tensor.checkpoint import (
            CorruptPartError,
            export,
            read_model,
        )  # imports torch, which nothing else needs

        try:
            model = read_model([Path(part) for part in parts])
            export(Path(path), model.tensors(), model.optimizer_state())
        except (CorruptPartError, OSError) as error:
            raise DmiError(f"{self.id} cannot be written to {path}: {error}") from error

"""Versions of a model that a training publishes while it goes on: files are written beside the script's loop."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from msgspec.structs import replace
from torch import Tensor

from dmi.errors import UsageError
from dmi.models.source import hash_of, source_of
from dmi_protocol.identity import BlobHash
from dmi_protocol.messages.roles import Follower, Published
from dmi_protocol.model import ModelContent, ModelFile
from dmi_tensor.checkpoint import export

_FOLDER = "published"
_WEIGHTS = ModelFile("weights", BlobHash(""), 0)
"""In the place of those that are still to be written."""


class Publisher:
    """Of the lead worker; ``tell`` hands a version to the daemon. One version is written at a time: the script waits for the one
    before."""

    def __init__(self, directory: Path, tell: Callable[[Published], None]) -> None:
        self._directory = directory / _FOLDER
        self._tell = tell
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None
        """Of those that the script published."""
        self._handed: Future[None] | None = None
        """Of those that were handed over, of which the script knows nothing."""
        self._known: dict[tuple[str, tuple[str, ...]], ModelContent] = {}
        """By what makes the model: what was found out about it."""

    def publish(self, name: str, step: int, tensors: Mapping[str, Tensor], model: str, inputs: Sequence[str]) -> None:
        """Write ``tensors``, which are copied before this returns. The first time the model is tried, in a child process. Raises
        ``UsageError`` for what is no model, and ``OSError`` of the version before."""
        self.wait()
        copies = {given: tensor.detach().clone() for given, tensor in tensors.items()}
        self._directory.mkdir(exist_ok=True)
        path = self._directory / f"{name}-{step}.safetensors"
        made = (model, tuple(inputs))
        if made not in self._known:
            export(path, copies)
            self._known[made] = source_of(model, path, inputs).content
        code = {"code": Path(model.rpartition(":")[0])}
        self._last = self._started().submit(self._write, name, step, copies, self._known[made], code)

    def hand_over(self, follower: Follower, files: Sequence[str], step: int, tensors: Mapping[str, Tensor]) -> None:
        """A checkpoint, as a version for who follows; ``files`` are where those of its content lie. What keeps it from being
        written is said in the log, and harms no training. The script waits for the one before."""
        if self._handed is not None:
            self._handed.result()
        copies = {given: tensor.detach().clone() for given, tensor in tensors.items()}
        content = replace(follower.content, files=(*follower.content.files, _WEIGHTS))
        paths = {file.name: Path(path) for file, path in zip(follower.content.files, files, strict=True)}
        self._handed = self._started().submit(self._try_to_write, follower.name, step, copies, content, paths)

    def _started(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        return self._thread

    def _try_to_write(
        self, name: str, step: int, tensors: Mapping[str, Tensor], content: ModelContent, given: Mapping[str, Path]
    ) -> None:
        try:
            self._directory.mkdir(exist_ok=True)
            self._write(name, step, tensors, content, given)
        except OSError as error:
            print(f"the version of {name} after step {step} is left out: {error}", file=sys.stderr, flush=True)

    def _write(
        self, name: str, step: int, tensors: Mapping[str, Tensor], content: ModelContent, given: Mapping[str, Path]
    ) -> None:
        """``given`` are the paths of all its files but the weights, by name."""
        path = self._directory / f"{name}-{step}.safetensors"
        export(path, tensors)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files, paths = list[ModelFile](), list[str]()
        for known in content.files:
            if known.name == "weights":
                files.append(ModelFile("weights", hash_of(path), path.stat().st_size))
                paths.append(str(path))
            else:  # the daemon takes files in as they are: the script's own stays
                copy = self._directory / f"{name}-{step}.py"
                copy.write_bytes(given[known.name].read_bytes())
                files.append(known)
                paths.append(str(copy))
        made = replace(content, files=tuple(files))
        self._tell(Published(name, step, made, tuple(paths), int(time.time())))

    def wait(self) -> None:
        """Until the version before is with the daemon. Raises ``OSError``."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """The same, and no thread is left."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()


def checked(model: str) -> str:
    """``module:function`` or ``file.py:function``. Raises ``UsageError``."""
    if ":" not in model:
        raise UsageError(f"run.publish takes what makes the model, as in model='net.py:make', and not {model!r}")
    return model

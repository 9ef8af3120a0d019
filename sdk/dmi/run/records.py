"""What a worker writes down: how far it is, and which leaves it computed."""

import errno
import json
import sys
import time
from pathlib import Path

from dmi_protocol import limits
from dmi_protocol.messages.roles import Progressed
from dmi_wire.child import Child


class ProgressReporter:
    """For people: tells the daemon now and then where the training stands."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._samples = 0
        self.begin()

    def begin(self) -> None:
        """How fast we train is counted from here."""
        self._told_at = time.monotonic()

    def made(self, step: int, steps: int | None, samples: int, loss: float | None, *, tells: bool) -> None:
        """A step is done. Only who leads ``tells``."""
        now = time.monotonic()
        self._samples += samples
        is_due = (now - self._told_at) * 1000 >= limits.PROGRESS_MS or step == steps
        if tells and is_due:
            speed = self._samples / max(now - self._told_at, 1e-9)
            self._told_at, self._samples = now, 0
            self._child.tell(Progressed(step, steps, speed, loss))


class Ledger:
    """``ledger.jsonl``: one line for each leaf that was computed here, with the step and the number of samples. It is for
    people: where it cannot be written, or is too long, it ends, and the training does not."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ledger.jsonl"
        self._room = limits.LEDGER_BYTES

    def note(self, step: int, leaf: int, samples: int) -> None:
        """A leaf was computed."""
        line = json.dumps({"step": step, "leaf": leaf, "samples": samples}) + "\n"
        if not self._room:
            return
        try:
            if len(line) > self._room:
                raise OSError(errno.EFBIG, f"it has {limits.LEDGER_BYTES} bytes")
            with self._path.open("a") as ledger:
                ledger.write(line)
            self._room -= len(line)
        except OSError as error:
            self._room = 0
            print(f"the ledger of this worker ends at step {step}: {error.strerror}", file=sys.stderr, flush=True)

"""Child processes that load a model once, so that the process that asks need not: whatever the model does ends nothing else."""

import json
import signal
import subprocess
import sys
from typing import Any

from dmi.errors import UsageError

_ANSWER_S = 600.0


def answer_of(module: str, asked: dict[str, Any], what: str) -> dict[str, Any]:
    """What ``python -m module`` answers to one JSON object; ``what`` was given to it is for people. Raises ``UsageError`` with
    one line: what it says, or how it has ended."""
    try:
        child = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{what} did not end its trial run within {_ANSWER_S:g} s") from error
    if child.returncode != 0:
        raise UsageError(f"{what} {_ended(child.returncode, child.stderr)}")
    answer: dict[str, Any] = json.loads(child.stdout)
    if "error" in answer:
        raise UsageError(f"{what}: {answer['error']}")
    return answer


def _ended(code: int, said: str) -> str:
    if code < 0:
        return f"ended its trial run by signal {signal.Signals(-code).name}: it needs more memory than there is, or is damaged"
    last = (said.strip().splitlines() or ["no reason given"])[-1]
    return f"could not be tried: {last}"

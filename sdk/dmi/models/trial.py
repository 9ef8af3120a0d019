"""``python -m dmi.models.trial``: a child process that loads a model and runs it once, so that nothing else need.

It reads one JSON object (``content``, ``files``, ``inputs``) and prints one: the content with what goes in and
comes out, or an error.
"""

import json
import os
import sys
from pathlib import Path

import msgspec

from dmi_protocol.model import ModelContent, TensorInfo
from dmi_tensor.models import ModelError, describe


def main() -> None:
    """See the module."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # factories and torch may print, in C too
    asked = json.load(sys.stdin)
    content = msgspec.convert(asked["content"], ModelContent)
    files = {name: Path(path) for name, path in asked["files"].items()}
    said = msgspec.convert(asked["inputs"], tuple[TensorInfo, ...])
    answer: dict[str, object]
    try:
        answer = {"content": msgspec.to_builtins(describe(content, files, said))}
    except ModelError as error:
        answer = {"error": str(error)}
    with answers:
        json.dump(answer, answers)


if __name__ == "__main__":
    main()

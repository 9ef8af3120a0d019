"""``python -m dmi.models.trial``: a child process that loads a model and runs it once, so that nothing else need.

It reads one JSON object (``content``, ``files``, ``inputs``) and prints one: the content with what goes in and
comes out, or an error.
"""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import msgspec

from dmi_protocol.model import ModelContent, TensorInfo
from dmi_tensor.models import ModelError, describe


def main() -> None:
    """See the module."""
    asked = json.load(sys.stdin)
    content = msgspec.convert(asked["content"], ModelContent)
    files = {name: Path(path) for name, path in asked["files"].items()}
    said = msgspec.convert(asked["inputs"], tuple[TensorInfo, ...])
    answer: dict[str, object]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # factories and torch may print
            answer = {"content": msgspec.to_builtins(describe(content, files, said))}
    except ModelError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

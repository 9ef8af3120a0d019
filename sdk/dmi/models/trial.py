"""``python -m dmi.models.trial``: a child process that loads a model and runs it once, so that nothing else need.

It is given ``content``, ``files`` and ``inputs``, and answers the ``content`` with what goes in and comes out.
"""

from pathlib import Path
from typing import Any

import msgspec

from dmi.models.answering import answer
from dmi_protocol.model import ModelContent, TensorInfo
from dmi_tensor.models import describe


def _described(asked: dict[str, Any]) -> dict[str, Any]:
    content = msgspec.convert(asked["content"], ModelContent)
    files = {name: Path(path) for name, path in asked["files"].items()}
    said = msgspec.convert(asked["inputs"], tuple[TensorInfo, ...])
    return {"content": msgspec.to_builtins(describe(content, files, said))}


if __name__ == "__main__":
    answer(_described)

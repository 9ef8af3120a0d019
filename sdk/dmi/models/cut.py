"""``python -m dmi.models.cut``: a child process that cuts a model into stages, so that nothing else need load it.

It is given ``content``, ``files``, ``most_bytes`` and a ``directory``, and answers ``{"graph", "stages": [{"first", "last",
"weight_bytes", "weights"}]}``, where ``graph`` and ``weights`` are paths in that directory.
"""

from pathlib import Path
from typing import Any

import msgspec

from dmi.models.answering import answer
from dmi_protocol.model import ModelContent
from dmi_tensor.cutting import cut


def _cut(asked: dict[str, Any]) -> dict[str, Any]:
    content = msgspec.convert(asked["content"], ModelContent)
    files = {name: Path(path) for name, path in asked["files"].items()}
    made = cut(content, files, asked["most_bytes"], Path(asked["directory"]))
    stages = [
        {
            "first": stage.first,
            "last": stage.last,
            "weight_bytes": stage.weight_bytes,
            "weights": str(stage.weights),
        }
        for stage in made.stages
    ]
    return {"graph": str(made.graph), "stages": stages}


if __name__ == "__main__":
    answer(_cut)

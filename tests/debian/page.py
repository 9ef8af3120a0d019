"""The commands of ``docs/operations.md``: what is run is what is told."""

import re
from pathlib import Path

_BLOCK = re.compile(r"<!-- run: (?P<name>[a-z-]+) -->\n```sh\n(?P<commands>.*?)```", re.DOTALL)


def commands(page: Path) -> dict[str, list[str]]:
    """The lines of each block that has a name, without its comments."""
    found: dict[str, list[str]] = {}
    for block in _BLOCK.finditer(page.read_text()):
        lines = [line for line in block["commands"].splitlines() if line and not line.startswith("#")]
        found[block["name"]] = lines
    return found

"""What role processes of this host have printed."""

import logging
from pathlib import Path

from dmi_protocol import limits

_log = logging.getLogger("dmi.logs")
_MOST = limits.CHUNK_BYTES // 4


def read_logs(job: Path, offsets: dict[str, int]) -> dict[str, tuple[int, bytes]]:
    """By process (``1/worker-0``: generation and role): where the text starts, and the text, a bounded piece of it.

    Processes that are not in ``offsets`` are read from their beginning; one whose log cannot be read is left out.
    """
    texts: dict[str, tuple[int, bytes]] = {}
    left = _MOST
    for log in sorted(job.glob("*/*/log")):
        process = f"{log.parent.parent.name}/{log.parent.name}"
        start = max(0, offsets.get(process, 0))
        try:
            with log.open("rb") as file:
                file.seek(start)
                text = file.read(left)
        except OSError as error:
            _log.warning("%s cannot be read: %s", log, error.strerror)
            continue
        left -= len(text)
        if text:
            texts[process] = (start, text)
    return texts

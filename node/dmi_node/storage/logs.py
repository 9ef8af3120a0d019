"""What role processes of this host have printed."""

from pathlib import Path

from dmi_protocol import limits

_MOST = limits.CHUNK_BYTES // 4


def read_logs(job: Path, offsets: dict[str, int]) -> dict[str, tuple[int, bytes]]:
    """By process (``1/worker-0``: generation and role): where the text starts, and the text, a bounded piece of it.

    Processes that are not in ``offsets`` are read from their beginning.
    """
    texts: dict[str, tuple[int, bytes]] = {}
    left = _MOST
    for log in sorted(job.glob("*/*/log")):
        process = f"{log.parent.parent.name}/{log.parent.name}"
        start = max(0, offsets.get(process, 0))
        with log.open("rb") as file:
            file.seek(start)
            text = file.read(left)
        left -= len(text)
        if text:
            texts[process] = (start, text)
    return texts

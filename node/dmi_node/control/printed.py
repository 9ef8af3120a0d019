"""Lines out of what a process has printed, as a terminal would show them."""

from collections.abc import Iterator

from dmi_protocol.sizes import in_words

_LINE_BYTES = 64 * 1024
"""What has no end after so much is a line."""
_STANDS_S = 1.0
"""A line without an end that has not changed for so long is shown as it is: a progress bar, a question."""


class Printed:
    """The text of one process, as it comes in pieces."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        """What comes next is wanted from here on."""
        self._line_at = offset
        self._rest = b""
        self._changed_at = 0.0
        self._shown = ""
        """What was shown of a line that has no end yet."""

    @property
    def shown_to(self) -> int:
        """Up to here it was given as lines; what is behind it has no end yet."""
        return self._line_at

    def take(self, start: int, data: bytes, now: float) -> Iterator[str]:
        """The lines that end in ``data``, which begins at ``start``."""
        if start > self.offset:
            yield from self.end()
            yield f"[{in_words(start - self.offset)} are left out here]"
        self.offset, self._changed_at = start + len(data), now
        *whole, rest = (self._rest + data).split(b"\n")
        if len(rest) > _LINE_BYTES:  # no end in sight: what waits for it is bounded
            whole, rest = [*whole, rest], b""
        self._rest = rest
        at = self.offset - len(rest) - sum(len(line) + 1 for line in whole)
        for line in whole:
            at += len(line) + 1
            self._line_at = min(at, self.offset)
            yield from self._whole(line)

    def _whole(self, line: bytes) -> Iterator[str]:
        shown, self._shown = self._shown, ""
        text = _seen(line)
        if not shown or text != shown:
            yield text

    def standing(self, now: float) -> Iterator[str]:
        """What a line that has no end shows, where it has not changed for a while."""
        text = _seen(self._rest)
        if text and text != self._shown and now - self._changed_at >= _STANDS_S:
            self._shown = text
            yield text

    def end(self) -> Iterator[str]:
        """Nothing more comes of this line."""
        rest, self._rest = self._rest, b""
        if rest:
            yield from self._whole(rest)


def _seen(line: bytes) -> str:
    """What is left of a line that was written over: a carriage return leads to its beginning."""
    parts = [part for part in line.split(b"\r") if part]
    return parts[-1].decode(errors="replace") if parts else ""

"""Virtual time: a heap of what will happen, and one source of chance."""

import heapq
from collections.abc import Callable
from random import Random
from typing import Any
from zlib import crc32

from dmi_protocol.instant import Instant

Act = Callable[..., None]


class Clock:
    """``at`` and ``later`` plan a call, ``run`` makes the calls in order of time. Nothing else moves the time."""

    def __init__(self, seed: int) -> None:
        self.now = Instant(0)
        self.random = Random(seed)
        self.trace = 0
        """A checksum of all that was noted: equal for equal universes."""
        self._heap: list[tuple[int, int, Act, tuple[Any, ...]]] = []
        self._count = 0

    def later(self, delay_ms: int, act: Act, *arguments: Any) -> None:
        """Call ``act`` after so much time."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_ms, self._count, act, arguments))

    def at(self, when: int, act: Act, *arguments: Any) -> None:
        """Call ``act`` at this time, or now when that is past."""
        self.later(max(0, when - self.now), act, *arguments)

    def note(self, text: str) -> None:
        """Let ``text`` enter the checksum of this universe."""
        self.trace = crc32(text.encode(), self.trace)

    def run(self, end: int) -> None:
        """Let everything happen that is planned up to ``end``."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            when, _, act, arguments = heapq.heappop(heap)
            self.now = Instant(when)
            act(*arguments)
        self.now = Instant(max(self.now, end))

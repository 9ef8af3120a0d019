"""What a gateway counts: for ``status``, for Prometheus, and for the protocol's statistics."""

import time
from bisect import bisect_left
from collections import Counter

from dmi_protocol.messages.roles import Served

_BOUNDS_S = tuple(round(10 ** (power / 6) * 1e-4, 7) for power in range(37))
"""Of the time of a request: 0.1 ms to 100 s, six to a decade."""
_WINDOW_S = 5.0
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How often something was at most each of ``bounds``."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The bound that so many were below, to the next step of the bounds; 0 where there was nothing."""
        left = share * self.total
        for bound, count in zip((*self.bounds, self.bounds[-1]), self.counts, strict=True):
            left -= count
            if left <= 0 and self.total:
                return bound
        return 0.0

    def lines(self, name: str, labels: str) -> list[str]:
        """As Prometheus reads it."""
        found, below = [f"# TYPE {name} histogram"], 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            below += count
            found.append(f'{name}_bucket{{{labels},le="{bound:g}"}} {below}')
        found.append(f'{name}_bucket{{{labels},le="+Inf"}} {self.total}')
        return [*found, f"{name}_sum{{{labels}}} {self.sum:.6f}", f"{name}_count{{{labels}}} {self.total}"]


class Statistics:
    """Of one gateway, since it began."""

    def __init__(self, model: str) -> None:
        self._labels = f'model="{model}"'
        self.answers: Counter[int] = Counter()
        """By status, of requests to compute something."""
        self.seconds = Histogram(_BOUNDS_S)
        self.batches = Histogram(_BATCHES)
        self.rows = 0
        self.queue_ns = self.compute_ns = self.failed_ns = 0
        self.last_at_ms = 0
        self._window = Histogram(_BOUNDS_S)
        self._before = Histogram(_BOUNDS_S)
        self._window_at = time.monotonic()
        self._before_s = _WINDOW_S

    def answered(self, status: int, seconds: float, rows: int, waited_s: float) -> None:
        """A request was, after ``seconds``, of which it ``waited_s`` for a replica."""
        self.answers[status] += 1
        self.last_at_ms = int(time.time() * 1000)
        if status != 200:
            self.failed_ns += int(seconds * 1e9)
            return
        self.seconds.add(seconds)
        self._window.add(seconds)
        self.rows += rows
        self.queue_ns += int(waited_s * 1e9)
        self.compute_ns += int((seconds - waited_s) * 1e9)

    def served(self, busy: float) -> Served:
        """For ``status``: the speed and the times are those of the last five to ten seconds; ``busy`` is how much the replicas
        are."""
        now = time.monotonic()
        since = now - self._window_at
        both = Histogram(_BOUNDS_S)
        both.counts = [a + b for a, b in zip(self._before.counts, self._window.counts, strict=True)]
        served = Served(
            requests=self.answers.total(),
            failed=sum(count for status, count in self.answers.items() if status in {429, 500, 503, 504}),
            requests_per_second=round(both.total / max(since + self._before_s, 1.0), 1),
            p50_ms=round(both.quantile(0.5) * 1000, 2),
            p99_ms=round(both.quantile(0.99) * 1000, 2),
            busy=busy,
        )
        if since >= _WINDOW_S:
            self._before, self._before_s = self._window, since
            self._window, self._window_at = Histogram(_BOUNDS_S), now
        return served

    def metrics(self, replicas: int, waiting: int) -> str:
        """For Prometheus."""
        lines = ["# TYPE dmi_requests_total counter"]
        lines += [f'dmi_requests_total{{{self._labels},code="{s}"}} {n}' for s, n in sorted(self.answers.items())]
        lines += self.seconds.lines("dmi_request_seconds", self._labels)
        lines += self.batches.lines("dmi_batch_rows", self._labels)
        lines += ["# TYPE dmi_replicas gauge", f"dmi_replicas{{{self._labels}}} {replicas}"]
        lines += ["# TYPE dmi_waiting_requests gauge", f"dmi_waiting_requests{{{self._labels}}} {waiting}"]
        return "\n".join([*lines, ""])

"""How many replicas a deployment has that follows the load: the coordinator's decision, from what gateways gossip.

Of each replica it is known which share of the time it computed. When all of them together are busy beyond ``HIGH`` for a while,
more are started; when one fewer would still not be busy beyond ``LOW`` for longer, one ends. The two are far apart, and each
change is waited for before the next, so that it does not swing.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from dmi_protocol.cluster.command import Command, SetScale
from dmi_protocol.identity import JobId, RequestId
from dmi_protocol.instant import Instant, after
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.messages.roles import Served

LOOK_MS = 1_000
HIGH, WANTED, LOW = 0.8, 0.6, 0.5
"""Of the time of a replica: more is too much; what is aimed at; and less than this of one replica fewer is too little."""
UP_MS, DOWN_MS, SLEEP_MS = 3_000, 30_000, 60_000


class _Seen(Struct):
    """Since when it has been so."""

    scale: int
    requests: int
    high: Instant | None = None
    low: Instant | None = None
    idle: Instant | None = None


class Scaler:
    """Remembers only since when deployments are busy, or not."""

    def __init__(self) -> None:
        self._seen: dict[JobId, _Seen] = {}
        self._look_at: Instant | None = None

    def deadline(self) -> Instant | None:
        """When they are looked at again."""
        return self._look_at

    def propose(
        self, now: Instant, jobs: Iterable[DeploymentJob], served: Callable[[DeploymentJob], Sequence[Served]]
    ) -> list[Command]:
        """What is due now. ``served`` gives what each gateway says of a deployment."""
        following = {job.id: job for job in jobs if job.spec.most is not None}
        self._seen = {job: seen for job, seen in self._seen.items() if job in following}
        if not following:
            self._look_at = None
            return []
        if self._look_at is not None and now < self._look_at:
            return []
        self._look_at = after(now, LOOK_MS)
        wanted = [(job, self._wanted(now, job, served(job))) for job in following.values()]
        return [
            SetScale(RequestId(f"{job.id}/scale-{job.changes}-{scale}"), job.id, scale)
            for job, scale in wanted
            if scale != job.scale
        ]

    def _wanted(self, now: Instant, job: DeploymentJob, told: Sequence[Served]) -> int:
        requests, busy = sum(each.requests for each in told), max((each.busy for each in told), default=0.0)
        seen = self._seen.get(job.id)
        if seen is None or seen.scale != job.scale:
            seen = self._seen[job.id] = _Seen(job.scale, requests, idle=now)
        if seen.requests != requests:
            seen.requests, seen.idle = requests, now
        if not job.scale or job.computing < job.scale:
            seen.high = seen.low = None
            return job.scale
        least, most = job.spec.least, job.spec.most or job.spec.least
        seen.high = (seen.high or now) if busy > HIGH * job.scale else None
        seen.low = (seen.low or now) if busy < LOW * (job.scale - 1) else None
        if seen.high is not None and now >= after(seen.high, UP_MS):
            return min(most, max(job.scale + 1, math.ceil(busy / WANTED)))
        if least == 0 and seen.idle is not None and now >= after(seen.idle, SLEEP_MS):
            return 0
        if seen.low is not None and now >= after(seen.low, DOWN_MS):
            return max(least, job.scale - 1, 1)
        return job.scale

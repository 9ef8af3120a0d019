"""The machine of a copy of a shard: it takes buckets in, applies what its primary applies, and says what it has.

When its primary is lost it may be promoted (``Shard.promoted``): it has every version that a worker was ever shown.
"""

from typing import NamedTuple

from dmi_protocol.training.copies import HEADER
from dmi_protocol.training.exchange import ApplyRoot, Opened, ShardEffect
from dmi_protocol.training.step import Handle, Release


class Tell(NamedTuple):
    """Tell the primary that ``bucket`` is at ``version`` here."""

    bucket: int
    version: int


BackupEffect = ShardEffect | Tell


class Backup:
    """One copy. ``opened`` is what the shell has made room for; ``fields`` is the fingerprint of the workers."""

    def __init__(self, opened: Opened, definition: bytes, fields: tuple[tuple[str, str], ...]) -> None:
        self.opened = opened
        self.definition = definition
        self.fields = fields
        self.versions: dict[int, int] = {}
        self.made_by_copy: dict[int, int] = {}
        """The version at which a bucket came: the one before it is not here."""
        self.norms: tuple[int, tuple[tuple[int, float], ...]] | None = None
        """Of the last step that was applied here, when the job clips."""

    def copied(self, bucket: int, version: int) -> list[BackupEffect]:
        """The shell has put ``version`` of a bucket in place."""
        self.versions[bucket] = self.made_by_copy[bucket] = version
        return [Tell(bucket, version)]

    def replicated(
        self, step: int, bucket: int, handle: Handle | None, hyper: bytes, norms: tuple[tuple[int, float], ...]
    ) -> list[BackupEffect]:
        """The primary has the root of ``bucket`` in ``step``. What comes again is said again; what comes before the
        bucket did is dropped, and the bucket will come anew."""
        version = self.versions.get(bucket)
        release: list[BackupEffect] = [] if handle is None else [Release(handle)]
        if version is None or version < step:
            return release
        if version > step:
            return [*release, Tell(bucket, version)]
        self.versions[bucket] = step + 1
        if norms:
            self.norms = (step, norms)
        return [ApplyRoot(step, bucket, handle, hyper, norms), *release, Tell(bucket, step + 1)]

    def told(self) -> tuple[tuple[int, int], ...]:
        """All that is here, for the primary."""
        return ((HEADER, 0), *sorted(self.versions.items()))

    def wants_copy(self, bucket: int, version: int) -> bool:
        """Is a bucket that comes news here?"""
        return self.versions.get(bucket, -1) < version

    def check(self) -> None:
        """Assert the invariants."""
        live = [self.versions[bucket] for bucket in self.opened.buckets if bucket in self.versions]
        assert not live or max(live) - min(live) <= 1 or len(live) < len(self.opened.buckets), "a copy is torn"

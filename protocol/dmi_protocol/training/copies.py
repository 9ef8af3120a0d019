"""What a primary knows of the copies of its shard: who must have a version before any worker is shown it."""

from collections.abc import Iterable

from dmi_protocol.training.exchange import (
    BeginFill,
    CopyBucket,
    QueryReplica,
    ReplicateRoot,
    Rostered,
    ShardEffect,
    TellCaughtUp,
)
from dmi_protocol.training.norms import Squares
from dmi_protocol.training.step import Handle

HEADER = -1
"""Stands for what comes before the buckets, so that its arrival is confirmed like theirs."""


class Copies:
    """A backup in sync follows from the first. One that is filled gets bucket by bucket, each at the version that it has
    then, and from there on follows too; when it has all of them it counts like one in sync, and then that is told."""

    def __init__(self, buckets: Iterable[int], frozen: Iterable[int], definition: bytes) -> None:
        self._live = frozenset(buckets)
        self._frozen = frozenset(frozen)
        self._definition = definition
        self._fields: tuple[tuple[str, str], ...] = ()
        self._in_sync: frozenset[int] = frozenset()
        self._sent: dict[int, dict[int, int]] = {}
        """By server that is filled: the buckets that it was sent, and at which version."""
        self._has: dict[int, dict[int, int]] = {}
        """By server: the version of each bucket that it is known to have."""
        self._asked: dict[int, tuple[int, frozenset[int]]] = {}
        """By server that was asked what it has: in which step, and the buckets that had been sent by then."""

    def roster(self, event: Rostered, step: int, fields: tuple[tuple[str, str], ...]) -> list[ShardEffect]:
        """Who has copies from now on, and what those who are to have one get at once."""
        self._in_sync, self._fields = frozenset(event.backups), fields
        there = self._in_sync | set(event.filling)
        self._has = {server: self._has.get(server, {}) for server in sorted(there)}
        self._sent = {server: sent for server, sent in self._sent.items() if server in event.filling}
        work: list[ShardEffect] = []
        for server in event.filling:
            if server not in self._sent:
                self._sent[server] = {HEADER: 0}
                work.append(BeginFill(server, self._definition, fields))
                work += self._copy(server, self._frozen, step)
            work += self._tell(server)
        return work

    def _copy(self, server: int, buckets: Iterable[int], version: int) -> list[ShardEffect]:
        new = sorted(set(buckets))
        self._sent[server].update(dict.fromkeys(new, version))
        return [CopyBucket(server, bucket, version) for bucket in new]

    def followers(self, bucket: int) -> tuple[int, ...]:
        """Who is sent the next root of ``bucket``."""
        filled = {server for server, sent in self._sent.items() if bucket in sent}
        return tuple(sorted(self._in_sync | filled))

    def made(self, bucket: int, version: int) -> list[ShardEffect]:
        """The bucket is at ``version`` here now: who lacks it is given it."""
        lacking = [server for server, sent in self._sent.items() if bucket not in sent]
        return [effect for server in lacking for effect in self._copy(server, [bucket], version)]

    def _counted(self) -> frozenset[int]:
        """Those whose word is needed before a version is shown."""
        full = {server for server, sent in self._sent.items() if sent.keys() == self._live | self._frozen | {HEADER}}
        return self._in_sync | full

    def may_show(self, bucket: int, version: int) -> bool:
        """Has everybody who counts the bucket at this version?"""
        return all(self._has[server].get(bucket, -1) >= version for server in self._counted())

    def copied(self, server: int, bucket: int, version: int) -> list[ShardEffect]:
        """A server has a bucket."""
        if server not in self._in_sync and server not in self._sent:
            return []
        has = self._has[server]
        was_able = bool(self._tell(server))
        has[bucket] = max(version, has.get(bucket, -1))
        return [] if was_able else self._tell(server)

    def _tell(self, server: int) -> list[ShardEffect]:
        """A server that is filled can stand in for us once it has made a version itself: a worker that is behind may need
        the one before it. It is told again in each generation, until it is agreed."""
        sent, has = self._sent.get(server, {}), self._has[server]
        is_full = sent.keys() == self._live | self._frozen | {HEADER} and has.keys() == sent.keys()
        is_able = is_full and all(has[bucket] > sent[bucket] for bucket in self._live)
        return [TellCaughtUp(server)] if is_able else []

    def ask(self, applied: Iterable[int], step: int) -> list[ShardEffect]:
        """Those whose word does not come are asked what they have: nothing is sent twice because they are slow."""
        silent = self.silent(applied, step)
        made = frozenset(applied)
        self._asked = {server: (step, made | self._sent.get(server, {}).keys()) for server in silent}
        return [QueryReplica(server) for server in silent]

    def told(
        self,
        server: int,
        versions: Iterable[tuple[int, int]],
        applied: Iterable[int],
        step: int,
        roots: tuple[dict[int, Handle | None], bytes, Squares] | None,
    ) -> list[ShardEffect]:
        """All that a server has: what it was sent before and is not there was lost, and is sent again. ``applied`` are the
        buckets that have version ``step + 1`` here, ``roots`` what made those of them that are not shown yet, with
        hyperparameters and norms."""
        if server not in self._in_sync and server not in self._sent:
            return []
        has = dict(versions)
        asked_in, before = self._asked.pop(server, (step, frozenset()))
        work = [effect for bucket, version in sorted(has.items()) for effect in self.copied(server, bucket, version)]
        sent = self._sent.get(server, {})
        lost = sorted((sent.keys() & before) - has.keys())
        if HEADER in lost:
            work.append(BeginFill(server, self._definition, self._fields))
        made = frozenset(applied)
        for bucket in (bucket for bucket in lost if bucket != HEADER):
            version = step + 1 if bucket in made else step
            sent[bucket] = version
            work.append(CopyBucket(server, bucket, version))
        handles, hyper, norms = roots if roots is not None else ({}, b"", ())
        for bucket, root in handles.items():
            is_late = asked_in == step and bucket in before and has.get(bucket) == step
            if is_late and server in self.followers(bucket):
                work.append(ReplicateRoot((server,), step, bucket, root, hyper, norms))
        return work

    def silent(self, applied: Iterable[int], step: int) -> tuple[int, ...]:
        """Who has not confirmed something that it was sent."""
        late = {s for bucket in applied for s in self.followers(bucket) if self._has[s].get(bucket, -1) <= step}
        return tuple(sorted(late | {s for s, sent in self._sent.items() if sent.keys() - self._has[s].keys()}))

    def is_awaited(self) -> bool:
        """Is the word of a server still to come about something that it was sent?"""
        return any(sent.keys() - self._has[server].keys() for server, sent in self._sent.items())

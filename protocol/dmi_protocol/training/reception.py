"""Who may take part in a shard's training: workers that agree about all that could change its bits."""

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.training.agreement import difference
from dmi_protocol.training.exchange import Disagree, Greeted, Opened, Rostered, ShardEffect, WelcomeWorker

Fields = tuple[tuple[str, str], ...]


class Reception:
    """At the beginning nobody is welcome before all have greeted. Who comes later waits for the lead to say where the run
    stands, and is a joiner until it has leaves of its own."""

    def __init__(self, roster: Rostered) -> None:
        self._roster = roster
        self._greetings: dict[int, Greeted] = {}
        self._welcomed: set[int] = set()
        self.fields: Fields = ()
        """The fingerprint of all who take part; empty before anybody has greeted."""
        self.definition = b""
        self._has_begun = False
        self._buckets: frozenset[int] = frozenset()
        self._missing: set[int] | None = None
        """The buckets without values; None before we know what buckets there are."""

    def take_over(self, definition: bytes, fields: Fields, opened: Opened) -> None:
        """The training goes on here: who takes part is welcome at once."""
        self.definition, self.fields, self._has_begun = definition, fields, True
        self._buckets, self._missing = frozenset({*opened.buckets, *opened.frozen}), set()

    @property
    def has_everything(self) -> bool:
        """Is there a version that anybody could begin with?"""
        return self._missing is not None and not self._missing

    def initialized(self, bucket: int) -> None:
        """The lead has brought a bucket. Raises ``RemoteProtocolError`` for one that is not ours."""
        if bucket not in self._buckets:
            raise RemoteProtocolError(f"bucket {bucket} is not of this shard")
        if self._missing is not None:
            self._missing.discard(bucket)

    def lacking(self, worker: int) -> tuple[int, ...]:
        """What the lead should bring again, when it greets again because it is not welcomed."""
        is_again = worker == self._roster.lead and worker in self._greetings and worker not in self._welcomed
        return tuple(sorted(self._missing or ())) if is_again else ()

    def roster(self, event: Rostered) -> None:
        """A new generation: who is gone is forgotten."""
        self._roster = event
        for gone in self._greetings.keys() - set(event.workers):
            del self._greetings[gone]
            self._welcomed.discard(gone)

    def greeted(self, event: Greeted) -> Disagree | None:
        """Note a greeting, unless it contradicts the others'."""
        if self.fields and (found := difference(event, self.fields, min(self._greetings, default=None))) is not None:
            return found
        if self.definition and event.definition != self.definition:
            return Disagree(event.worker, min(self._greetings, default=None), "the model or the optimizer", "", "")
        self.fields = self.fields or event.fields
        self.definition = event.definition
        self._greetings[event.worker] = event
        self._welcomed.discard(event.worker)
        return None

    def opened(self, opened: Opened) -> Disagree | None:
        """There is room now, and values if there is a checkpoint: does anybody differ from those who made it?"""
        self._buckets = frozenset({*opened.buckets, *opened.frozen})
        self._missing = set(self._buckets) if opened.step is None else set()
        for greeted in self._greetings.values() if opened.fingerprint else ():
            if (found := difference(greeted, opened.fingerprint, None)) is not None:
                return found
        return None

    def welcome(self, step: int) -> list[ShardEffect]:
        """Those who may begin ``step``, when everything is here."""
        if not self.has_everything:
            return []
        regular = set(self._roster.workers) - set(self._roster.joiners)
        if not self._has_begun and not regular <= self._greetings.keys():
            return []
        self._has_begun = True
        new = sorted((self._greetings.keys() & regular) - self._welcomed)
        self._welcomed.update(new)
        return [WelcomeWorker(worker, step) for worker in new]

    def welcome_joiners(self, step: int, extra: bytes) -> list[WelcomeWorker]:
        """Those who wait for the lead to begin ``step``."""
        new = sorted((self._greetings.keys() & set(self._roster.joiners)) - self._welcomed)
        self._welcomed.update(new)
        return [WelcomeWorker(worker, step, extra) for worker in new]

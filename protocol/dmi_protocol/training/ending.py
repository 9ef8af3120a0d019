"""The parts of checkpoints that a shard writes, and the end of its job."""

from dmi_protocol.training.exchange import (
    CheckpointAsked,
    End,
    FinishAsked,
    Rostered,
    SayFinished,
    ShardEffect,
    TellDifference,
    WritePart,
)

Fields = tuple[tuple[str, str], ...]


class Ending:
    """Only when all scripts are over is the job's last step known to be the last."""

    def __init__(self, roster: Rostered) -> None:
        self._roster = roster
        self.finishing: set[int] = set()
        """The workers whose scripts are over."""
        self._written = -1
        """The last step of which a part was asked for."""
        self._kept: dict[int, dict[str, str]] = {}
        """By worker: digests of what its script keeps beside the model."""
        self._final_asked = False
        self._final_durable = False

    def roster(self, event: Rostered) -> list[ShardEffect]:
        """A new generation: nobody waits for who is gone."""
        self._roster = event
        self.finishing &= set(event.workers)
        return self._say_finished()

    def checkpoint(self, event: CheckpointAsked, fields: Fields) -> list[ShardEffect]:
        """A lead that has just become it asks for what the one before it may have asked for already."""
        if event.worker != self._roster.lead or event.step <= self._written:
            return []
        self._written = event.step
        return [WritePart(event.step, event.extra, final=False, fingerprint=fields)]

    def finish(self, event: FinishAsked, fields: Fields) -> list[ShardEffect]:
        """A script is over."""
        self.finishing.add(event.worker)
        self._kept[event.worker] = dict(event.kept)
        work: list[ShardEffect] = []
        if event.worker == self._roster.lead and not self._final_asked:
            self._final_asked = True
            work.append(WritePart(event.step, event.extra, final=True, fingerprint=fields))
        return [*work, *self._say_finished()]

    def durable(self, *, final: bool) -> list[ShardEffect]:
        """A part is on the disk."""
        self._final_durable |= final
        return self._say_finished() if final else []

    def _say_finished(self) -> list[ShardEffect]:
        expected = set(self._roster.workers) - set(self._roster.joiners)
        if not self._final_durable or not expected <= self.finishing:
            return []
        return [*self._differences(), SayFinished(tuple(sorted(self.finishing))), End()]

    def _differences(self) -> list[ShardEffect]:
        """Told once, when all scripts are over."""
        told, self._kept = self._kept, {}
        leads = told.get(self._roster.lead)
        if leads is None:
            return []
        found: list[ShardEffect] = []
        for worker in sorted(told.keys() & self.finishing):
            names = sorted({name for name, _ in leads.items() ^ told[worker].items()})
            if names:
                found.append(TellDifference(worker, self._roster.lead, tuple(names)))
        return found

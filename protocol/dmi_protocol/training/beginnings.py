"""Which steps the workers of a shard have begun, and that they begin them alike."""

from dmi_protocol.training.exchange import Began, Disagree, Rostered


class Beginnings:
    """Whoever begins a step has copied all that it was shown of the versions before."""

    def __init__(self, roster: Rostered) -> None:
        self._roster = roster
        self._steps: dict[int, int] = {}
        self._installed: dict[int, int] = {}
        """By worker: the last version that it has said to have in place."""
        self._first: Began | None = None
        """The first to begin the last step."""

    def roster(self, event: Rostered) -> None:
        """A new generation: who is gone holds nobody up."""
        self._roster = event
        for gone in self._steps.keys() - set(event.workers):
            del self._steps[gone]
            self._installed.pop(gone, None)

    def attached(self) -> tuple[int, ...]:
        """The workers that are shown every version: all but the joiners that have not come in yet."""
        joiners = self._roster.joiners
        return tuple(worker for worker in self._roster.workers if worker not in joiners or worker in self._steps)

    def come_in(self, worker: int, step: int) -> None:
        """A joiner will begin ``step``: its version is kept for it."""
        self._steps.setdefault(worker, step - 1)

    def note(self, event: Began) -> None:
        """A worker is at a step."""
        self._steps[event.worker] = max(event.step, self._steps.get(event.worker, -1))
        self._installed[event.worker] = self._steps[event.worker]

    def contradiction(self, event: Began) -> Disagree | None:
        """Does a worker begin the step in flight unlike the first one?"""
        if self._first is None or self._first.step < event.step:
            self._first = event
        first = self._first
        if event.hyper != first.hyper:
            return Disagree(event.worker, first.worker, "hyperparameters", "", "")
        if event.written != first.written:
            return Disagree(event.worker, first.worker, "the buffers that the script wrote between the steps", "", "")
        if event.data != first.data:
            return Disagree(event.worker, first.worker, "the data", event.data, first.data)
        if event.leaf_sizes != first.leaf_sizes:
            sizes = str(sum(event.leaf_sizes)), str(sum(first.leaf_sizes))
            return Disagree(event.worker, first.worker, "samples in the batch", *sizes)
        return None

    def hyper(self, step: int) -> bytes | None:
        """The hyperparameters of ``step``; None before anybody has begun it."""
        return self._first.hyper if self._first is not None and self._first.step == step else None

    def has_begun(self, worker: int, step: int) -> bool:
        """Then it has all of version ``step``."""
        return self._steps.get(worker, -1) >= step

    def has_installed(self, worker: int, version: int) -> bool:
        """It has said so: a joiner has nothing before it begins."""
        return self._installed.get(worker, -1) >= version

    def has_lead_begun(self, step: int) -> bool:
        """Its wish for a checkpoint of the version before would have come first."""
        return self._steps.get(self._roster.lead, -1) >= step

    def has_everybody_begun(self, step: int) -> bool:
        """Of those who are shown every version."""
        return all(self._steps.get(worker, -1) >= step for worker in self.attached())

    def beyond(self, step: int) -> tuple[int, ...]:
        """Who has begun ``step`` or a later one."""
        return tuple(sorted(worker for worker, begun in self._steps.items() if begun >= step))

"""What a replica computes next."""

from dmi_protocol.messages.roles import Slices


class SliceQueue:
    """The slices that a replica was told, without those that it has computed: what it tells of them may still be on its way while
    new leases are. Only when results were lost it computes again what it has computed."""

    def __init__(self) -> None:
        self._told = Slices(0, ())
        self._written: set[int] = set()

    @property
    def decided(self) -> int:
        """Of the last message; it goes with each result."""
        return self._told.decided

    @property
    def first(self) -> int | None:
        """What is to be computed now; None while there is nothing."""
        return next((slice_ for slice_ in self._told.slices if slice_ not in self._written), None)

    def wants(self, slice_: int) -> bool:
        """Is it still to be computed here?"""
        return slice_ in self._told.slices and slice_ not in self._written

    def file(self, slice_: int) -> str | None:
        """Where the inputs of a slice that was told lie, if they travel."""
        return self._told.files[self._told.slices.index(slice_)] if self._told.files else None

    def told(self, message: Slices) -> None:
        """New leases: they replace the old ones."""
        if message.reopened > self._told.reopened:
            self._written.clear()
        self._told = message

    def written(self, slice_: int) -> None:
        """Its result is durable here, and about to be told."""
        self._written.add(slice_)

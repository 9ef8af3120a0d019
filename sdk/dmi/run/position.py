"""Where a script stands, and what of it is done again after a recovery.

A position is an epoch, the steps of it that were begun, and the *rounds* since the last of them: evaluations and broadcasts.
Whoever goes on from a position runs the script's own code from the beginning of that epoch. Steps before the position are left
out; the one at the position has no leaves any more, and each round gives what it gave then.
"""

from typing import Literal

from msgspec import Struct

from dmi.errors import UsageError

What = Literal["new", "again", "past"]
"""To be done; done then, and what the script does after it is done again; done and left out, with all that follows it."""

RoundKey = tuple[int, int]
"""The steps of the epoch that were begun before it, -1 before the first epoch, and which round it is since then, from 1 on."""


class Given(Struct, frozen=True):
    """What the round ``number`` gave, packed."""

    number: int
    value: bytes


class Mark(Struct, frozen=True):
    """A position; ``rounds`` is what those rounds gave that are done again after it."""

    epoch: int
    begun: int
    since: int
    rounds: tuple[tuple[RoundKey, Given], ...]


class Position:
    """Of one script. ``resume`` is a mark that it goes on from, until it has come there."""

    def __init__(self) -> None:
        self.epoch = 0
        self._begun, self._since = -1, 0
        self._rounds: dict[RoundKey, Given] = {}
        self.target: Mark | None = None

    def go_on_from(self, mark: Mark) -> None:
        """Come to ``mark`` first."""
        self.target = mark
        self.epoch = mark.epoch
        self._rounds = dict(mark.rounds)

    def mark(self) -> Mark:
        """Where the script stands now."""
        return Mark(self.epoch, self._begun, self._since, tuple(self._rounds.items()))

    def begin_epoch(self) -> None:
        """Nothing of it was begun; or what comes after the last one."""
        self._begun = self._since = 0
        if self.target is None:
            self._rounds = {key: given for key, given in self._rounds.items() if key[0] < 0}

    def begin_step(self, *, is_first: bool) -> What:
        """One more, maybe the first of a pass over some data. What rounds inside a pass gave is not needed after its next "
        "step."""
        if self.target is None and not is_first:
            self._rounds = {key: given for key, given in self._rounds.items() if key[0] != self._begun}
        self._begun = max(self._begun, 0) + 1
        self._since = 0
        if self.target is None:
            return "new"
        if self._begun > self.target.begun:
            raise self._lost()
        return "again" if self._begun == self.target.begun else "past"

    def begin_round(self) -> Given | None:
        """One more; gives what it gave when it was done, None when it is to be done now."""
        self._since += 1
        given = self._rounds.get((self._begun, self._since))
        if self.target is None:
            return None
        if given is None:
            raise self._lost()
        return given

    def end_round(self, given: Given) -> None:
        """The last round gave this."""
        self._rounds[self._begun, self._since] = given

    def _lost(self) -> UsageError:
        return UsageError(
            f"the job goes on from {self.sentence}, and the script went on without it: has it, or its data, changed?"
        )

    @property
    def has_come(self) -> bool:
        """Is this the place that we were to come to?"""
        target = self.target
        return target is not None and (target.begun, target.since) == (self._begun, self._since)

    def arrive(self) -> None:
        """From now on everything is new."""
        self.target = None

    @property
    def sentence(self) -> str:
        """Where a target is, for people."""
        assert self.target is not None
        return f"step {max(self.target.begun, 0)} of epoch {self.target.epoch}"

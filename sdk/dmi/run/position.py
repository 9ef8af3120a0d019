"""Where a script stands, and what of it is done again after a recovery.

Whoever goes on from a mark runs the script's own code from the beginning of the mark's epoch. Steps before the mark are left out;
the one at the mark has no leaves any more, and all that the script keeps is put back there as it was then. What the script does
after that is done again by itself. *Rounds* are evaluations and broadcasts: one that was done gives what it gave, wherever it is
met again."""

from typing import Literal

from msgspec import Struct

from dmi.errors import UsageError
from dmi_protocol import limits
from dmi_protocol.sizes import in_words

What = Literal["new", "again", "past"]
"""To be done; done then, and what the script does after it is done again; done and left out, with all that follows it."""

RoundKey = tuple[int, int, int]
"""The epoch, the steps of it that were begun before, and which round it is since then, from 1 on; (-1, -1, 1) is the first of
those before the first epoch."""


class Given(Struct, frozen=True):
    """What the round ``number`` gave, packed."""

    number: int
    value: bytes


class Mark(Struct, frozen=True):
    """The place of a step: its epoch, and the steps of that which were begun, with it."""

    epoch: int
    begun: int

    @property
    def sentence(self) -> str:
        """For people."""
        return f"step {self.begun} of epoch {self.epoch}"


_ROUND_BYTES = 100
"""What a round takes beside its value."""
_BEGINNING = Mark(-1, -1)


class Position:
    """Of one script. ``target`` is a mark that it goes on from, until it has come there."""

    def __init__(self) -> None:
        self.epoch = 0
        self.target: Mark | None = None
        self.rounds: dict[RoundKey, Given] = {}
        """What is met again by whoever goes on from the last mark."""
        self._begun, self._since = -1, 0
        self._left: tuple[int, int] | None = None
        """The step before the one of now, in the same pass."""
        self._due: set[RoundKey] = set()
        """Rounds that were done after the mark, and are still to be met again."""

    def go_on_from(self, mark: Mark | None, rounds: dict[RoundKey, Given]) -> None:
        """Come to ``mark`` first, None for the script's beginning, and meet the rounds that were done since."""
        self.target = mark
        self.rounds = dict(rounds)
        if mark is not None:
            self.epoch = mark.epoch
        after = mark or _BEGINNING
        self._due = {key for key in rounds if key > (after.epoch, after.begun, 0)}

    def mark(self) -> Mark:
        """The step that was just made is the place to go on from. Rounds that nobody meets again then are forgotten: those before
        it in the same pass, and those of earlier epochs."""
        gone = {key for key in self.rounds if 0 <= key[0] < self.epoch or key[:2] == self._left}
        self.rounds = {key: given for key, given in self.rounds.items() if key not in gone}
        return Mark(self.epoch, self._begun)

    def begin_epoch(self) -> None:
        """Nothing of it was begun; or what comes after the last one."""
        self._begun = self._since = 0

    def begin_step(self, *, is_first: bool) -> What:
        """One more, maybe the first of a pass over some data. Raises ``UsageError`` where the script goes on without its mark."""
        self._left = None if is_first else (self.epoch, self._begun)
        self._begun = max(self._begun, 0) + 1
        self._since = 0
        if self.target is None:
            if self._due:
                raise self._lost()
            return "new"
        if self._begun > self.target.begun:
            raise self._lost()
        return "again" if self._begun == self.target.begun else "past"

    def begin_round(self) -> Given | None:
        """One more; gives what it gave when it was done, None when it is to be done now. Raises ``UsageError`` as
        ``begin_step``."""
        self._since += 1
        given = self.rounds.get(self._key)
        self._due.discard(self._key)
        if given is None and (self._due or self.target is not None):
            raise self._lost()
        return given

    def end_round(self, given: Given) -> None:
        """The last round gave this. Raises ``UsageError`` when too much is remembered."""
        self.rounds[self._key] = given
        if sum(_ROUND_BYTES + len(each.value) for each in self.rounds.values()) > limits.ROUNDS_BYTES:
            raise UsageError(
                f"{len(self.rounds)} evaluations and broadcasts, which whoever joins must meet again, gave more than "
                f"{in_words(limits.ROUNDS_BYTES)}: put the loop into run.epochs(...), which forgets those of earlier epochs, or "
                "broadcast less"
            )

    @property
    def _key(self) -> RoundKey:
        return (-1 if self._begun < 0 else self.epoch), self._begun, self._since

    def arrive(self) -> None:
        """The step at the mark is done: from now on steps are new."""
        self.target = None

    def _lost(self) -> UsageError:
        where = "what it had done" if self.target is None else self.target.sentence
        return UsageError(
            f"the job goes on from {where}, and the script went on without it: has it, or its data, changed?"
        )

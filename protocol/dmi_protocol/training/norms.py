"""The squared norms of a step's roots, over all shards: a job that clips needs them before it applies anything."""

from collections.abc import Collection

from dmi_protocol.training.exchange import TellNorms

Squares = tuple[tuple[int, float], ...]
"""(bucket, squared norm), in bucket order."""


class Norms:
    """What one shard has measured, told and heard. What was told of the last two steps is told again in each generation,
    because whoever was promoted has not heard it."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._measured: dict[int, float] = {}
        self._of_shard: dict[int, Squares] = {}
        self._known: Squares = ()
        """Of all shards, when the primary before us had applied them to some buckets already."""
        self._told: dict[int, Squares] = {}

    def begin(self, step: int) -> None:
        """A step begins."""
        self._measured.clear()
        self._of_shard.clear()
        self._known = ()
        self._told = {told: squares for told, squares in self._told.items() if told >= step - 1}

    def take_over(self, step: int, found: tuple[int, Squares], own: Collection[int]) -> None:
        """Go on at ``step`` with the norms that a copy was last given; ``own`` are the buckets of this shard."""
        of_step, squares = found
        self._known = squares if of_step == step else ()
        self._told[of_step] = tuple(square for square in squares if square[0] in own)

    @property
    def are_known(self) -> bool:
        """Need nothing be measured or heard any more?"""
        return bool(self._known)

    def measured(self, step: int, bucket: int, square: float, buckets: int) -> list[TellNorms]:
        """One of our ``buckets`` roots; when it was the last one, the others are told."""
        self._measured[bucket] = square
        if len(self._measured) < buckets:
            return []
        squares = tuple(sorted(self._measured.items()))
        self._of_shard[self._shard] = self._told[step] = squares
        return [TellNorms(step, squares)]

    def heard(self, shard: int, squares: Squares) -> None:
        """Those of another shard."""
        self._of_shard.setdefault(shard, squares)

    def again(self) -> list[TellNorms]:
        """What somebody may not have heard."""
        return [TellNorms(step, squares) for step, squares in sorted(self._told.items())]

    def ask(self, step: int) -> list[TellNorms]:
        """Those of others do not come, though ours were told."""
        return [TellNorms(step, self._told[step], asks=True)] if step in self._told else []

    def answer(self, step: int) -> list[TellNorms]:
        """Somebody asks."""
        return [TellNorms(step, self._told[step])] if step in self._told else []

    def are_complete(self, shards: Collection[int]) -> bool:
        """Is there one for every bucket of ``shards``?"""
        return self.are_known or self._of_shard.keys() == set(shards)

    def all(self) -> Squares:
        """In bucket order; empty when the job does not clip."""
        return self._known or tuple(sorted(square for squares in self._of_shard.values() for square in squares))

"""What a checkpoint keeps of a run beside tensors: where it stood when a version was put in place.

A snapshot is taken inside ``optimizer.step()``, so whoever goes on from it does again what the script does after that call: step
the schedulers, change ``run.state``, evaluate, ask for the checkpoint. See ``position.py``.
"""

from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Protocol, runtime_checkable

import msgspec

from dmi.errors import UsageError
from dmi.run.position import Given, Mark, RoundKey
from dmi.run.state import digest
from dmi_protocol.errors import RemoteProtocolError
from dmi_tensor import values
from dmi_tensor.values import CannotTravelError

_CODE = (FunctionType, MethodType, BuiltinFunctionType, type)
"""What is the script's, and is there again wherever the script runs."""


@runtime_checkable
class Keepable(Protocol):
    """What can say all that it remembers, and take it back."""

    def state_dict(self) -> Any:
        """All that it remembers."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Be what ``state_dict`` says."""
        ...


class Snapshot(msgspec.Struct, frozen=True):
    """The script at ``mark``, inside ``optimizer.step()``, after so many steps that ``trained``. ``data`` and ``metrics`` are
    those of the last one, ``sums`` those of ``run.mean``; ``state`` and ``things`` are packed values."""

    mark: Mark
    trained: int
    hyper: bytes
    data: str
    metrics: dict[str, float]
    sums: dict[str, tuple[float, int]]
    state: bytes
    things: tuple[bytes, ...]


class Kept(msgspec.Struct, frozen=True):
    """The last snapshot, None before the first step, and what the rounds gave that are met again after it, of so many
    ``rounds``."""

    snapshot: Snapshot | None
    rounds: int
    given: tuple[tuple[RoundKey, Given], ...]

    def pack(self) -> bytes:
        """For a checkpoint, and for joiners."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def unpack(cls, data: bytes) -> "Kept":
        """What ``pack`` gave. Raises ``RemoteProtocolError``."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"not what a run keeps: {error}") from error


class Things:
    """Schedulers, and whatever else the script has given to the run, in the order in which it did."""

    def __init__(self) -> None:
        self.all: list[Keepable] = []

    def add(self, thing: Keepable) -> None:
        """Keep one more. Raises ``UsageError`` for one that cannot be kept."""
        _state_of(thing)
        self.all.append(thing)

    def packed(self) -> tuple[bytes, ...]:
        """What all of them remember now. Raises ``UsageError``."""
        return tuple(map(_state_of, self.all))

    def digests(self) -> tuple[tuple[str, str], ...]:
        """Of what each remembers, by what it is."""
        named = [(f"a kept {type(thing).__name__}", _state_of(thing)) for thing in self.all]
        return tuple((name, digest(data)) for name, data in named)

    def put_back(self, kept: Sequence[bytes]) -> None:
        """Bring them to what they were. Raises ``UsageError``."""
        if len(kept) != len(self.all):
            raise UsageError(
                f"the job keeps {len(kept)} schedulers and other things, and the script gives {len(self.all)} now to "
                "run.scheduler and run.keep: give all of them on every worker, before the first step"
            )
        for thing, state in zip(self.all, kept, strict=True):
            thing.load_state_dict(values.unpack(state))


def _state_of(thing: Keepable) -> bytes:
    state = thing.state_dict()
    if isinstance(state, dict):
        state = type(state)((key, value) for key, value in state.items() if not isinstance(value, _CODE))
    try:
        return values.pack(state)
    except CannotTravelError as error:
        raise UsageError(f"the state of a {type(thing).__name__} cannot be kept: {error}") from None

"""What a checkpoint keeps of a run beside tensors: where it stood when a version was put in place.

It is taken inside ``optimizer.step()``, so whoever goes on from it does again what the script does after that call:
step the schedulers, change ``run.state``, ask for the checkpoint.
"""

import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import msgspec
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dmi.errors import UsageError
from dmi_tensor.optimizers import groups_of

AnyScheduler = LRScheduler | ReduceLROnPlateau


class Kept(msgspec.Struct, frozen=True):
    """``begun`` counts the steps of ``epoch`` up to the one that was just made; ``sums`` are those of ``run.mean``."""

    epoch: int
    begun: int
    hyper: bytes
    metrics: dict[str, float]
    sums: dict[str, tuple[float, int]]
    state: dict[str, Any]
    schedulers: list[dict[str, Any]]

    def pack(self) -> bytes:
        """For a checkpoint. Raises ``UsageError`` for a ``run.state`` or a scheduler that cannot be kept."""
        schedulers = io.BytesIO()
        torch.save(self.schedulers, schedulers)
        plain = {
            name: value for name, value in msgspec.structs.asdict(self).items() if name not in {"schedulers", "state"}
        }
        try:
            packed: bytes = msgpack.packb(plain | {"schedulers": schedulers.getvalue(), "state": self.state})
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"run.state holds something that is no plain value: {error}") from None
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> "Kept":
        """What ``pack`` gave."""
        plain = msgpack.unpackb(data, strict_map_key=False)
        plain["schedulers"] = torch.load(io.BytesIO(plain["schedulers"]), weights_only=True)
        return msgspec.convert(plain, cls)


def states_of(schedulers: Sequence[AnyScheduler]) -> list[dict[str, Any]]:
    """What the schedulers are like now."""
    return [copy.deepcopy(scheduler.state_dict()) for scheduler in schedulers]


def put_back(kept: Kept, optimizer: Optimizer, schedulers: Sequence[AnyScheduler]) -> None:
    """Bring the script's optimizer and schedulers to what they were. Raises ``UsageError``."""
    if len(kept.schedulers) != len(schedulers):
        raise UsageError(
            f"the checkpoint was made with {len(kept.schedulers)} schedulers and the script has {len(schedulers)} now"
        )
    for group, options in zip(optimizer.param_groups, groups_of(kept.hyper), strict=True):
        group.update(options)
    for scheduler, state in zip(schedulers, kept.schedulers, strict=True):
        scheduler.load_state_dict(state)


def replace(state: dict[str, Any], kept: Mapping[str, Any]) -> None:
    """Make ``state`` what was kept, and stay the same object: the script may hold it."""
    state.clear()
    state.update(copy.deepcopy(dict(kept)))

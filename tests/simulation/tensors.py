"""Fake tensors: a set of leaves as bits, and the version that they were computed on. So a leaf that is counted twice,
and a sum of two versions, show."""

from typing import NamedTuple

from dmi_protocol.training.step import Handle, Release, Sum
from tests.simulation.trouble import demand


class Tensor(NamedTuple):
    """``leaves`` has bit ``i`` set when leaf ``i`` is in the sum."""

    leaves: int
    version: int


class Tensors:
    """What one role process holds."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._held: dict[Handle, Tensor] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, tensor: Tensor | None) -> Handle | None:
        """Hold a tensor; None is an absent one."""
        if tensor is None:
            return None
        self._next += 1
        self._held[Handle(self._next)] = tensor
        return Handle(self._next)

    def get(self, handle: Handle | None) -> Tensor | None:
        """The tensor that ``handle`` names."""
        if handle is None:
            return None
        demand("tensors", handle in self._held, f"{self._owner} uses a tensor that it gave up")
        return self._held[handle]

    def do(self, effect: Sum | Release) -> None:
        """Add, or give up."""
        if isinstance(effect, Release):
            self.get(effect.handle)
            del self._held[effect.handle]
            return
        left, right = self.get(effect.left), self.get(effect.right)
        assert left is not None
        assert right is not None
        demand("leaves", left.leaves & right.leaves == 0, f"{self._owner} counts a leaf twice")
        demand("versions", left.version == right.version, f"{self._owner} adds leaves of two versions")
        del self._held[effect.right]
        self._held[effect.left] = Tensor(left.leaves | right.leaves, left.version)


class Memory:
    """A server's parameters: room for two versions of each bucket, as in the real one."""

    def __init__(self) -> None:
        self._slots: dict[int, list[int | None]] = {}

    def apply(self, bucket: int, step: int, root: Tensor | None, full: int) -> None:
        """Version ``step`` and the root make version ``step + 1``, where ``step - 1`` lay."""
        slots = self._slots[bucket]
        demand("versions", slots[step % 2] == step, f"step {step} of bucket {bucket} is applied to version {slots}")
        demand("leaves", root is not None and root.leaves == full, f"step {step} is applied without all of its leaves")
        assert root is not None
        demand("versions", root.version == step, f"step {step} is applied with leaves of version {root.version}")
        slots[(step + 1) % 2] = step + 1

    def read(self, bucket: int, version: int) -> int:
        """The version that a worker would be shown."""
        found = self._slots[bucket][version % 2]
        demand("versions", found == version, f"bucket {bucket} is shown at version {found} instead of {version}")
        return version

    def put(self, bucket: int, version: int) -> None:
        """A copy comes at this version."""
        self._slots[bucket] = [version, None] if version % 2 == 0 else [None, version]

    def latest(self, bucket: int) -> int:
        """The newest version of a bucket."""
        return max((version for version in self._slots.get(bucket, []) if version is not None), default=-1)

    def forget(self, version: int) -> None:
        """The room may be written."""
        for slots in self._slots.values():
            if slots[version % 2] == version:
                slots[version % 2] = None

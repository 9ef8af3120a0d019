"""What in the state has blobs on the nodes' disks: jobs, and versions of models."""

from collections.abc import Iterator
from typing import Protocol

from dmi_protocol.identity import BlobHash, NodeId


class Holding(Protocol):
    """Something that blobs belong to. ``copies`` says who is to keep a further copy of a blob and has not told that it does,
    ``asked`` how often one of that blob was asked for."""

    @property
    def id(self) -> str:
        """Under which commands name it."""
        ...

    copies: dict[BlobHash, NodeId]
    asked: dict[BlobHash, int]

    def kept(self) -> Iterator[tuple[BlobHash, tuple[NodeId, ...]]]:
        """Every blob that it speaks of, beside the files of jobs, and who is said to have it: what is spoken of by nothing is
        swept."""
        ...

    def blobs(self) -> dict[BlobHash, tuple[NodeId, ...]]:
        """What must not be lost, and who has it."""
        ...

    def hold(self, blob: BlobHash, node: NodeId) -> None:
        """``node`` has a further copy of a blob."""
        ...

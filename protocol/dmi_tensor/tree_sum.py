"""A leaf's share of a bucket, and the one addition of the tree: left child plus right child.

Each share carries a weight for each segment of its bucket: the part of the batch's samples whose leaves touched that
tensor, 0.0 for an absent one. Absent segments are zeros in the tensor.
"""

import math
from collections.abc import Mapping

import msgpack
import torch
from msgspec import Struct

from dmi_protocol.codec import convert, unpack
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.training.layout import Bucket
from dmi_tensor.buckets import view_of


class DisagreementError(Exception):
    """Two leaves give different values to a buffer that cannot be averaged; its argument is the buffer's name."""


class Share(Struct):
    """The weighted sum of some leaves for one bucket.

    ``tensor`` is flat, of the bucket's length, in the bucket's sum dtype; None in the metrics bucket. ``weights`` has
    one entry for each segment. ``metrics`` maps a name to (weighted sum, weight), in the metrics bucket only, as is ``value``,
    what the lead tells all workers.
    """

    tensor: torch.Tensor | None
    weights: list[float]
    metrics: dict[str, tuple[float, float]]
    value: bytes = b""

    @property
    def detail(self) -> bytes:
        """All of the share but its tensor, for the wire."""
        packed: bytes = msgpack.packb((self.weights, self.metrics, self.value))
        return packed


def share_of(tensor: torch.Tensor | None, detail: bytes, segments: int) -> Share:
    """The share that came as ``tensor`` and ``detail``; ``RemoteProtocolError`` when the detail makes no sense."""
    weights, metrics, value = convert(unpack(detail), tuple[list[float], dict[str, tuple[float, float]], bytes])
    if len(weights) != segments:
        raise RemoteProtocolError(f"weights for {len(weights)} segments where the bucket has {segments}")
    return Share(tensor, weights, metrics, value)


def add(bucket: Bucket, left: Share, right: Share) -> Share:
    """``left`` plus ``right``, in place in ``left``'s tensor. Raises ``DisagreementError``."""
    if bucket.kind == "agree":
        _agree(bucket, left, right)
    elif left.tensor is not None and right.tensor is not None:
        left.tensor.add_(right.tensor)
    left.weights = [one + other for one, other in zip(left.weights, right.weights, strict=True)]
    left.metrics = _add_metrics(left.metrics, right.metrics)
    left.value = left.value or right.value
    return left


def _agree(bucket: Bucket, left: Share, right: Share) -> None:
    """Where both sides touched a buffer they must have given it the same value."""
    assert left.tensor is not None
    assert right.tensor is not None
    for place, segment in enumerate(bucket.segments):
        if right.weights[place]:
            mine, other = view_of(left.tensor, segment), view_of(right.tensor, segment)
            if not left.weights[place]:
                mine.copy_(other)
            elif not torch.equal(mine, other):
                raise DisagreementError(segment.name)


def _add_metrics(
    left: Mapping[str, tuple[float, float]], right: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    summed = dict(left)
    for name, (value, weight) in right.items():
        before = summed.get(name)
        summed[name] = (value, weight) if before is None else (before[0] + value, before[1] + weight)
    return summed


def means(share: Share | None) -> dict[str, float]:
    """The weighted mean of each reported number."""
    if share is None:
        return {}
    return {name: value / weight if weight else math.nan for name, (value, weight) in sorted(share.metrics.items())}

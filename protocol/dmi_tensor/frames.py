"""Tensors as raw frames and back, without a copy: the bytes stay where they lie."""

from collections.abc import Sequence

import torch

from dmi_protocol.frames import check_payload
from dmi_protocol.tensor_spec import ITEM_BYTES, TensorSpec, describe

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
"""Every dtype that may travel, by its name."""


def frame_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor; the view keeps the memory alive, and changes with it."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("only contiguous CPU tensors lie in one frame")
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """What ``frame_of`` gives, described."""
    return describe(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def tensor_of(spec: TensorSpec, frame: memoryview) -> torch.Tensor:
    """A tensor over the bytes of ``frame``, writable when they are; the two must agree (``check_payload``)."""
    dtype = DTYPES[spec.dtype]
    if frame.nbytes == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(frame, dtype=torch.uint8).view(dtype).reshape(spec.shape)


def tensors_of(specs: Sequence[TensorSpec], frames: Sequence[memoryview]) -> tuple[torch.Tensor, ...]:
    """One tensor for each spec; ``RemoteProtocolError`` when the frames are not what the specs say."""
    check_payload(specs, frames)
    return tuple(tensor_of(spec, frame) for spec, frame in zip(specs, frames, strict=True))

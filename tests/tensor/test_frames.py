"""Tensors become frames and come back with the same bits, over the same bytes."""

import pytest
import torch

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.tensor_spec import TensorSpec
from dmi_tensor.frames import DTYPES, frame_of, spec_of, tensor_of, tensors_of


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_comes_back_with_the_same_bits(name: str) -> None:
    bits = torch.arange(96, dtype=torch.uint8).remainder(2 if name == "bool" else 97)
    tensor = bits.view(DTYPES[name])
    back = tensor_of(spec_of(tensor), frame_of(tensor))
    assert back.dtype == tensor.dtype
    assert torch.equal(back.view(torch.uint8), bits)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_every_shape_comes_back(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape)
    back = tensor_of(spec_of(tensor), frame_of(tensor))
    assert torch.equal(back, tensor)


def test_nothing_is_copied() -> None:
    tensor = torch.zeros(4)
    back = tensor_of(spec_of(tensor), frame_of(tensor))
    back.fill_(2.0)
    assert tensor.tolist() == [2.0] * 4


def test_what_is_not_contiguous_is_our_own_fault() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        frame_of(torch.zeros(4, 4).t())


@pytest.mark.parametrize(
    ("spec", "size"),
    [(TensorSpec("float32", (3,), 12), 16), (TensorSpec("float31", (3,), 12), 12), (TensorSpec("int8", (-1,), 1), 1)],
)
def test_frames_that_are_not_what_was_said_are_the_peers_fault(spec: TensorSpec, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        tensors_of([spec], [memoryview(bytearray(size))])
    with pytest.raises(RemoteProtocolError):
        tensors_of([spec], [])

"""The server's tensors: what does not fit is refused, and a neighbour's memory is read and never written."""

import pytest
import torch
from msgspec.structs import replace

from dmi_node.roles.tensors import Tensors
from dmi_protocol.codec import encode_struct
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.messages.parameters import Contribution, Region
from dmi_protocol.tensor_spec import TensorSpec
from dmi_protocol.training.exchange import ApplyRoot
from dmi_protocol.training.layout import Definition, ParameterSpec
from dmi_tensor.frames import frame_of, spec_of
from dmi_tensor.optimizers import hyperparameters
from dmi_tensor.tree_sum import Share
from dmi_wire.shared_memory import Segment

LENGTH = 32
DEFINITION = Definition(
    (ParameterSpec("weight", (LENGTH,), "float32", 0),), (), (("weight",),), "SGD", whole=False, leaves=2, clip_norm=1.0
)
HYPER = hyperparameters(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5))


@pytest.fixture
def tensors() -> Tensors:
    made = Tensors(0, 1, shares_memory=True)
    opened = made.open(encode_struct(DEFINITION))
    assert (opened.buckets, opened.leaves, opened.clips) == ((0, 1), 2, True)
    start = torch.zeros(LENGTH)
    made.initialize(0, [spec_of(start)], [frame_of(start)])
    return made


def contribution(tensor: torch.Tensor, weight: float = 0.5, region: Region | None = None) -> Contribution:
    detail = Share(tensor, [weight], {}).detail
    return Contribution(1, 0, 0, 0, 0, 1, (spec_of(tensor),), detail, region)


def test_a_neighbours_sums_are_read_and_never_written(tensors: Tensors) -> None:
    segment = Segment.create(2 * LENGTH * 4)
    tensors.greet(0, segment.name, segment.size)
    lent = torch.frombuffer(segment.buffer, dtype=torch.float32).view(2, LENGTH)
    lent[0], lent[1] = 1.0, 2.0
    left, right = (
        tensors.put(0, contribution(lent[place], region=Region(segment.name, place * LENGTH * 4)), [])
        for place in range(2)
    )
    assert left is not None
    assert right is not None
    tensors.add(left, right)
    square = tensors.square(0, left)
    assert square == pytest.approx(LENGTH * 9.0)
    tensors.apply(ApplyRoot(0, 0, left, HYPER, ((0, square),)))
    assert lent[0].tolist() == [1.0] * LENGTH
    assert lent[1].tolist() == [2.0] * LENGTH
    step = 0.5 * 3.0 / (square**0.5 + 1e-6)
    assert tensors.arithmetic.read(0, 1).tolist() == pytest.approx([-step] * LENGTH)
    segment.withdraw()


def test_clipping_a_root_that_a_neighbour_keeps_works_on_a_copy(tensors: Tensors) -> None:
    segment = Segment.create(LENGTH * 4)
    tensors.greet(0, segment.name, segment.size)
    lent = torch.frombuffer(segment.buffer, dtype=torch.float32)
    lent.fill_(4.0)
    handle = tensors.put(0, contribution(lent, 1.0, Region(segment.name, 0)), [])
    tensors.apply(ApplyRoot(0, 0, handle, HYPER, ((0, tensors.square(0, handle)),)))
    assert lent.tolist() == [4.0] * LENGTH
    segment.withdraw()


def test_what_is_shown_to_a_neighbour_lies_in_our_segment(tensors: Tensors) -> None:
    theirs = Segment.create(64)
    tensors.greet(0, theirs.name, theirs.size)
    name, size = tensors.offer(0)
    assert name is not None
    ours = Segment.attach(name, size)
    handle = tensors.put(0, contribution(torch.ones(LENGTH), 1.0), [frame_of(torch.ones(LENGTH))])
    tensors.apply(ApplyRoot(0, 0, handle, HYPER, ((0, 0.0),)))
    shown = tensors.show(0, 1, 0)
    assert shown.region is not None
    view = ours.view(shown.region.offset, LENGTH * 4)
    assert torch.frombuffer(view, dtype=torch.float32).tolist() == [-0.5] * LENGTH
    far = tensors.show(1, 1, 0)
    assert far.region is None
    assert bytes(far.frames[0]) == bytes(view)
    tensors.has_mapped(0)
    with pytest.raises(FileNotFoundError):
        Segment.attach(name, size)
    theirs.withdraw()


@pytest.mark.parametrize(
    "message",
    [
        contribution(torch.ones(LENGTH + 1)),
        contribution(torch.ones(LENGTH, dtype=torch.float64)),
        Contribution(1, 0, 0, 7, 0, 1, (), b"x"),
        Contribution(1, 0, 0, -1, 0, 1, (), b"x"),
        Contribution(1, 0, 0, 0, 0, 1, (), b"\x92\x91\xcb\x00\x00\x00\x00\x00\x00\x00\x00\x80"),
        contribution(torch.ones(LENGTH), region=Region("1-1", 0)),
        Contribution(1, 0, 0, 0, 0, 1, (TensorSpec("float32", (1 << 40,), 1 << 42),), b"x"),
    ],
)
def test_contributions_that_do_not_fit_are_the_peers_fault(tensors: Tensors, message: Contribution) -> None:
    frames = [memoryview(bytearray(spec.length_bytes)) for spec in message.tensors if spec.length_bytes < 1 << 20]
    with pytest.raises(RemoteProtocolError):
        tensors.put(0, message, frames)


@pytest.mark.parametrize("bucket", [-1, 1, 7])
def test_initial_values_that_do_not_fit_are_the_peers_fault(tensors: Tensors, bucket: int) -> None:
    values = torch.zeros(LENGTH)
    with pytest.raises(RemoteProtocolError):
        tensors.initialize(bucket, [spec_of(values)], [frame_of(values)])


def test_an_explicit_absent_has_no_handle(tensors: Tensors) -> None:
    assert tensors.put(0, Contribution(1, 0, 0, 0, 0, 1, ()), []) is None


@pytest.mark.parametrize(
    "definition",
    [
        replace(DEFINITION, leaves=3),
        replace(DEFINITION, leaves=1 << 20),
        replace(DEFINITION, optimizer="lr_scheduler"),
        replace(DEFINITION, parameters=(ParameterSpec("weight", (-1,), "float32", 0),)),
        replace(DEFINITION, parameters=(ParameterSpec("weight", (1,), "object", 0),)),
    ],
)
def test_a_model_that_cannot_be_is_the_peers_fault(definition: Definition) -> None:
    with pytest.raises(RemoteProtocolError):
        Tensors(0, 1, shares_memory=False).open(encode_struct(definition))


def test_nothing_is_taken_before_the_model_is_described() -> None:
    with pytest.raises(RemoteProtocolError):
        Tensors(0, 1, shares_memory=False).put(0, Contribution(1, 0, 0, 0, 0, 1, ()), [])

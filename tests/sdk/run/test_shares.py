"""Where a worker's sums are made: beside the neighbour's server in shared memory, else in recycled memory of its own."""

import torch
import zmq

from dmi.run.shares import Neighbour, Shares
from dmi_protocol.training.layout import Bucket, Layout, Segment
from dmi_protocol.training.step import cover

LAYOUT = Layout(
    (
        Bucket(0, "parameter", "float32", 0, 0, 32, (Segment("a", 0, 0, 20, (20,)), Segment("b", 0, 24, 8, (8,)))),
        Bucket(1, "parameter", "bfloat16", 0, 0, 32, (Segment("c", 0, 0, 32, (32,)),)),
        Bucket(2, "metrics", "float64", -1, 0, 0, ()),
    ),
    3,
)


def test_the_first_leaf_of_each_top_is_made_where_the_neighbour_reads() -> None:
    neighbour = Neighbour(LAYOUT, [0, 1, 2], cover([1, 2, 3]))
    shares = Shares(LAYOUT, dict.fromkeys(range(3), neighbour))
    for bucket, dtype in ((0, torch.float32), (1, torch.float32)):
        for leaf, is_shared in ((1, True), (2, True), (3, False)):
            share = shares.take(bucket, leaf)
            assert share.tensor is not None
            assert (share.tensor.dtype, share.tensor.shape) == (dtype, (32,))
            region = shares.region(bucket, share)
            assert (region is not None) == is_shared
            if region is not None:
                share.tensor.fill_(leaf + bucket)
                view = neighbour.segment.view(region.offset, 128)
                assert torch.frombuffer(view, dtype=torch.float32).tolist() == [leaf + bucket] * 32
                share.tensor.zero_()
    assert shares.take(2, 1).tensor is None
    neighbour.segment.withdraw()


def test_padding_is_zero_whatever_was_there_before() -> None:
    shares = Shares(LAYOUT, {})
    share = shares.take(0, 0)
    assert share.tensor is not None
    share.tensor.fill_(5.0)
    address = share.tensor.data_ptr()
    shares.release(shares.put(0, share))
    again = shares.take(0, 1).tensor
    assert again is not None
    assert again.data_ptr() == address, "memory is recycled"
    assert again[20:24].tolist() == [0.0] * 4


def test_a_tensor_that_a_socket_holds_is_not_used_again() -> None:
    shares = Shares(LAYOUT, {})
    share = shares.take(0, 0)
    assert share.tensor is not None
    handle = shares.put(0, share)
    message = zmq.Frame(bytes(100_000), track=True, copy=False)
    tracker = message.tracker
    assert tracker is not None
    shares.sent(handle, tracker)
    shares.release(handle)
    other = shares.take(0, 0)
    assert other.tensor is not None
    assert other.tensor.data_ptr() != share.tensor.data_ptr()
    del message
    tracker.wait(10)
    shares.release(shares.put(0, other))
    free = {tensor.data_ptr() for tensor in (shares.take(0, 0).tensor, shares.take(0, 0).tensor) if tensor is not None}
    assert free == {share.tensor.data_ptr(), other.tensor.data_ptr()}


def test_a_sum_is_made_in_the_left_ones_memory() -> None:
    shares = Shares(LAYOUT, {})
    left, right = shares.take(0, 0), shares.take(0, 1)
    assert left.tensor is not None
    assert right.tensor is not None
    left.tensor.fill_(1.0)
    right.tensor.fill_(2.0)
    left.weights, right.weights = [0.5, 0.0], [0.25, 0.25]
    names = shares.put(0, left), shares.put(0, right)
    shares.add(*names)
    found = shares.get(names[0])
    assert found.tensor is not None
    assert found.tensor.tolist() == [3.0] * 32
    assert found.weights == [0.75, 0.25]

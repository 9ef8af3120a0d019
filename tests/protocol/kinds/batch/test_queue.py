"""What a replica computes next."""

from dmi_protocol.kinds.batch.queue import SliceQueue
from dmi_protocol.messages.roles import Slices


def test_slices_are_computed_in_the_order_in_which_they_were_told() -> None:
    queue = SliceQueue()
    queue.told(Slices(1, (4, 2)))
    seen = []
    while (first := queue.first) is not None:
        seen.append(first)
        queue.written(first)
    assert (seen, queue.decided) == ([4, 2], 1)
    assert SliceQueue().first is None


def test_what_was_computed_is_not_computed_again_though_it_is_told_again() -> None:
    """The lease was decided on before the result was committed."""
    queue = SliceQueue()
    queue.told(Slices(1, (4, 2)))
    queue.written(4)
    queue.told(Slices(2, (4, 2, 7)))
    assert (queue.first, queue.decided) == (2, 2)


def test_what_was_lost_is_computed_again() -> None:
    queue = SliceQueue()
    queue.told(Slices(1, (4,)))
    queue.written(4)
    queue.told(Slices(2, (4,), reopened=1))
    assert queue.first == 4


def test_what_is_not_told_any_more_is_given_up() -> None:
    queue = SliceQueue()
    queue.told(Slices(1, (4, 2)))
    assert queue.wants(2)
    queue.told(Slices(2, (4,)))
    assert not queue.wants(2)
    assert queue.wants(4)

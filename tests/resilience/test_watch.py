"""How long a training stood still, from what was seen of it."""

from tests.resilience.watch import Recovery, Seen, progress, recovery


def running(*moments: tuple[float, int], generation: int = 1) -> list[Seen]:
    return [Seen(at, "running", generation, step) for at, step in moments]


def test_a_fallback_to_a_checkpoint() -> None:
    seen = running((9.8, 50), (10.2, 52))
    seen.append(Seen(10.4, "recovering", 2, 52))
    seen += running((12.0, 48), (13.0, 52), (13.2, 53), generation=2)
    found = recovery(seen, 10.0)
    assert found.detected_s is not None
    assert round(found.detected_s, 6) == 0.4
    assert round(found.recovered_s or 0, 6) == 3.2


def test_a_new_generation_without_a_word() -> None:
    seen = running((9.8, 50), (10.1, 51)) + running((10.3, 51), (10.7, 52), (10.9, 54), generation=2)
    found = recovery(seen, 10.0)
    assert (round(found.detected_s or 0, 6), round(found.recovered_s or 0, 6)) == (0.3, 0.7)


def test_what_stands_still_later_is_another_matter() -> None:
    seen = running((9.9, 50), (10.2, 52), (10.4, 54), (11.2, 56), (20.0, 58))
    found = recovery(seen, 10.0)
    assert found.detected_s is None
    assert round(found.recovered_s or 0, 6) == 1.2


def test_no_further_step() -> None:
    assert recovery(running((9.9, 50)), 10.0) == Recovery(None, None)
    assert recovery([], 10.0) == Recovery(None, None)


def test_the_end_is_progress_and_a_change_of_state_is_none() -> None:
    seen = [Seen(1, "running", 1, 5), Seen(2, "recovering", 1, 5), Seen(3, "running", 2, 5), Seen(4, "succeeded", 2, 6)]
    assert progress(seen, 1.5) == [4]

"""The log beside a dumb twin: a plain list of everything that ever was."""

from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.codec import pack
from dmi_protocol.consensus.log import Log
from dmi_protocol.messages.consensus import Entry, Snapshot, Voters
from tests.protocol.consensus.cluster import command, entries, node, nodes


def snapshot(index: int, term: int, voters: str = "abc") -> Snapshot:
    return Snapshot(index, term, tuple(sorted(nodes(voters))), b"")


growing = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(
    lambda steps: [1 + sum(steps[: i + 1]) for i in range(len(steps))]
)


@given(growing, st.integers(0, 12), st.integers(0, 15))
def test_a_compacted_log_answers_as_the_whole_one_where_it_can(terms: list[int], cut: int, index: int) -> None:
    whole = entries(*terms)
    cut = min(cut, len(whole))
    log = Log(None, whole)
    if cut:
        log.compact(snapshot(cut, whole[cut - 1].term))
    log.check()
    assert (log.start, log.last, log.last_term) == (cut, len(whole), terms[-1])
    known = index == 0 if cut == 0 and index == 0 else cut <= index <= len(whole)
    assert log.term_at(index) == ((0 if index == 0 else terms[index - 1]) if known else None)
    assert log.between(cut + 1, len(whole)) == whole[cut:]


@given(growing, st.integers(1, 12))
def test_the_first_of_a_term_is_found_by_walking(terms: list[int], index: int) -> None:
    index = min(index, len(terms))
    log = Log(None, entries(*terms))
    assert log.first_of_term(index) == terms.index(terms[index - 1]) + 1


def test_an_append_drops_what_stood_there_and_after() -> None:
    log = Log(snapshot(3, 1), entries(1, 1, 2, first=4))
    log.append(entries(3, first=5))
    assert [log.term_at(i) for i in range(3, 7)] == [1, 1, 3, None]


def test_a_log_is_as_complete_by_last_term_then_by_length() -> None:
    log = Log(None, entries(1, 2, 2))
    assert log.is_covered_by(3, 2)
    assert log.is_covered_by(1, 3)
    assert not log.is_covered_by(2, 2)
    assert not log.is_covered_by(9, 1)


def test_voters_count_as_soon_as_they_are_in_the_log_and_no_longer() -> None:
    log = Log(snapshot(1, 1, "ab"), [])
    log.append([Entry(2, 1, Voters((node("a"), node("b"), node("c"))))])
    assert (log.voters_at(2), log.voters_index()) == (nodes("abc"), 2)
    assert log.voters_at(1) == nodes("ab")
    log.append(entries(2, first=2))
    assert (log.voters_at(2), log.voters_index()) == (nodes("ab"), 0)


def test_a_log_without_a_beginning_has_no_voters() -> None:
    assert Log(None, []).voters_at(0) == frozenset()


def test_what_the_snapshot_covers_is_not_restored() -> None:
    log = Log(snapshot(2, 1), entries(1, 1, 2))
    assert (log.start, log.last) == (2, 3)
    log.check()


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.integers(0, 2_000), st.booleans())
def test_a_batch_is_the_longest_beginning_that_weighs_little_enough(
    sizes: list[int], most_bytes: int, first_any_size: bool
) -> None:
    all_of_them = [Entry(i + 1, 1, command("x" * size)) for i, size in enumerate(sizes)]
    taken = Log(None, all_of_them).batch(1, len(sizes), most_bytes, first_any_size=first_any_size)
    best = 0
    for count in range(1, len(sizes) + 1):
        if sum(len(pack(e)) for e in all_of_them[:count]) <= most_bytes:
            best = count
    assert list(taken) == all_of_them[: max(best, int(first_any_size))]


def test_nothing_is_a_batch_too() -> None:
    assert Log(None, entries(1)).batch(2, 1, 100, first_any_size=True) == ()


def test_between_is_empty_when_the_last_is_before_the_first() -> None:
    log = Log(snapshot(5, 1), entries(1, 1, 1, first=6))
    assert log.between(6, 3) == log.between(8, 7) == ()

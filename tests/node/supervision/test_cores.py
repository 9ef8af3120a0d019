"""Who may use which processors."""

from hypothesis import given
from hypothesis import strategies as st

from dmi_node.supervision.cores import Cores


def test_who_is_promised_some_has_them_alone() -> None:
    cores = Cores([3, 1, 0, 2])
    cores.take("a", 1)
    cores.take("b", 2)
    assert [set(found) for found in (cores.of(["a"]), cores.of(["b"]), cores.left)] == [{0}, {1, 2}, {3}]
    assert cores.of(["a", "b", "nobody"]) == {0, 1, 2}


def test_nothing_is_promised_twice_to_one() -> None:
    cores = Cores(range(4))
    for _ in range(2):
        cores.take("a", 2)
    assert cores.left == {2, 3}


def test_who_comes_before_another_has_gone_shares_with_it_and_no_longer() -> None:
    cores = Cores(range(2))
    cores.take("going", 1)
    cores.take("stays", 1)
    cores.take("comes", 1)
    assert [set(found) for found in (cores.of(["going"]), cores.of(["comes"]), cores.left)] == [{0}, {0}, set()]
    cores.give_back("stays")
    assert cores.of(["going"]) != cores.of(["comes"]), "one of them has moved"
    cores.give_back("comes")
    cores.give_back("going")
    assert cores.left == {0, 1}
    assert not cores.is_promised


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40))
def test_as_long_as_there_are_enough_nobody_shares(happens: list[tuple[int, int]]) -> None:
    cores, held = Cores(range(6)), dict[str, int]()
    for unit, count in happens:
        name = str(unit)
        if count and name not in held:
            cores.take(name, count)
            held[name] = count
        elif not count:
            cores.give_back(name)
            held.pop(name, None)
        mine = [cores.of([name]) for name in held]
        assert [len(found) for found in mine] == list(held.values())
        if sum(held.values()) <= 6:
            assert len(frozenset().union(*mine)) == sum(held.values())
            assert len(cores.left) == 6 - sum(held.values())

"""What a script holds of run.state stays what run.state has."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dmi
from dmi.errors import UsageError
from dmi.run.state import State
from dmi_tensor import values


def kept(**found: Any) -> dict[str, Any]:
    """As it comes out of a checkpoint: other objects."""
    unpacked: dict[str, Any] = values.unpack(values.pack(found))
    return unpacked


def test_values_that_can_be_changed_stay_the_same_objects() -> None:
    state = State()
    history, nested = state.setdefault("history", [1, [2]]), state.setdefault("nested", {"a": {"b": [1]}, "gone": 1})
    names, array, tensor = {"x"}, np.zeros(3), torch.zeros(2)
    inner, deep = history[1], nested["a"]["b"]
    state.update(names=names, array=array, tensor=tensor, text="old")
    wanted = kept(
        history=[7, [8, 9], 10],
        nested={"a": {"b": [1, 2]}, "c": 3},
        names={"y"},
        array=np.arange(3.0),
        tensor=torch.ones(2),
        text="new",
    )
    state.replace(wanted)
    assert state["history"] is history
    assert (history, inner, history[1] is inner) == ([7, [8, 9], 10], [8, 9], True)
    assert state["nested"] is nested
    assert (nested, deep) == ({"a": {"b": [1, 2]}, "c": 3}, [1, 2])
    assert state["names"] is names
    assert names == {"y"}
    assert state["array"] is array
    assert array.tolist() == [0, 1, 2]
    assert state["tensor"] is tensor
    assert tensor.tolist() == [1, 1]
    assert state["text"] == "new"
    state.replace({})
    assert len(state) == 0


def test_a_deque_stays_the_same_object_where_it_is_as_long() -> None:
    state = State()
    last = state.setdefault("last", deque([1, 2], maxlen=2))
    any_length = state.setdefault("any", deque([1]))
    state.replace(kept(last=deque([5, 6], maxlen=2), any=deque([1], maxlen=1)))
    assert (state["last"] is last, list(last), last.maxlen) == (True, [5, 6], 2)
    assert (state["any"] is any_length, state["any"].maxlen) == (False, 1)
    with pytest.raises(UsageError, match="same deque"):
        state["again"] = last


def test_what_became_something_else_is_another_object() -> None:
    state = State()
    state.update(a=[1], b=np.zeros(2), c=torch.zeros(2), d={"x": 1})
    held = {key: state[key] for key in "abcd"}
    state.replace(kept(a=(1,), b=np.zeros(3), c=torch.zeros(2, dtype=torch.int64), d=[1]))
    assert all(state[key] is not held[key] for key in "abcd")
    assert held["a"] == [1]


def test_what_two_places_share_is_written_once() -> None:
    """Two views of one memory, and what cannot be written at all."""
    both, row = torch.zeros(4), np.zeros((2, 2))
    state = State()
    with torch.inference_mode():
        metric = torch.tensor(0.5)
    state.update(a=both[:3], b=both[1:], c=row[0], d=row[::-1, 0], e=torch.zeros(1).expand(3), f=metric)
    found = kept(
        a=torch.ones(3),
        b=torch.full((3,), 2.0),
        c=np.ones(2),
        d=np.full(2, 3.0),
        e=torch.arange(3.0),
        f=torch.tensor(1.5),
    )
    state.replace(found)
    assert {key: state[key].tolist() for key in state} == {key: found[key].tolist() for key in found}
    assert state["f"] is not metric
    separate = torch.zeros(4)
    state = State()
    first, second = separate[:2], separate[2:]
    state.update(a=first, b=second)
    state.replace(kept(a=torch.ones(2), b=torch.full((2,), 2.0)))
    assert (state["a"] is first, state["b"] is second, separate.tolist()) == (True, True, [1, 1, 2, 2])


def test_one_thing_lies_at_one_place() -> None:
    """In a plain run a change would be seen at both; after a recovery at one."""
    state = State()
    state["last"] = torch.zeros(1)
    with pytest.raises(
        UsageError, match=r"run.state\['last'\] is the same Tensor as run.state\['best'\].*put a copy there"
    ):
        state["best"] = state["last"]
    state["best"] = state["last"].clone()
    row = [1]
    with pytest.raises(UsageError, match=r"\['rows'\]\[1\] is the same list as run.state\['rows'\]\[0\]"):
        state["rows"] = [row, row]
    rows = state.setdefault("rows", [])
    rows.append(row)
    state.packed()
    rows.append(row)
    with pytest.raises(UsageError, match="same list"):
        state.packed()
    with pytest.raises(UsageError, match="same list"):
        state["deep"] = {"x": (row,)}
    state["rows"] = ["a", "a", 1, 1, (), ()]
    state["again"] = state["rows"][0]
    state.replace(kept(rows=[]))
    assert state.copy() == {"rows": []}


READS: dict[str, Callable[[State], Any]] = {
    "item": lambda state: state["a"],
    "get": lambda state: state.get("a"),
    "setdefault": lambda state: state.setdefault("a", 1),
    "in": lambda state: "a" in state,
    "len": len,
    "iter": list,
    "keys": lambda state: state.keys(),
    "values": lambda state: state.values(),
    "items": lambda state: state.items(),
    "copy": lambda state: state.copy(),
    "dict": dict,
    "equal": lambda state: state == {"a": 0},
    "pop": lambda state: state.pop("a", None),
    "merged": lambda state: {**state},
    "or": lambda state: state | {},
    "or to another": lambda state: {} | state,
    "repr": repr,
    "reversed": lambda state: list(reversed(state)),
    "delete": lambda state: state.__delitem__("a"),
    "popitem": lambda state: state.popitem(),
}


@pytest.mark.parametrize("name", READS)
def test_nothing_is_shown_before_it_was_asked_for(name: str) -> None:
    """A joiner hears there what the others have."""
    state: State

    def hear() -> None:
        state.replace(kept(a=[5]))

    state = State(hear)
    state["a"] = [0]
    state.update(b=2)
    READS[name](state)
    assert dict.get(state, "a", [5]) == [5], name
    assert dict.get(state, "b") is None


def test_it_is_read_behind_the_optimizer() -> None:
    """Or a joiner could not have heard: it is told in the very first run."""
    run = dmi.init(seed=0)
    run.state["begun"] = 1
    with pytest.raises(UsageError, match="read it behind them, right before the loop"):
        run.state.setdefault("best", 0.0)
    model = run.model(nn.Linear(1, 1))
    with pytest.raises(UsageError, match=r"before run\.model"):
        run.state["begun"]
    run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    assert run.state.setdefault("best", 0.0) == 0.0
    assert run.state["begun"] == 1

"""``run.state``: a small dict that is kept with the job, and takes only what can be."""

import hashlib
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import numpy as np
import torch

from dmi.errors import UsageError
from dmi_protocol import limits
from dmi_tensor import values
from dmi_tensor.values import CannotTravelError


class State(dict[str, Any]):
    """A dict whose values travel (see ``dmi_tensor.values``). What does not is refused where it is set, or, inside a value that
    was changed later, before the next step. Both raise ``UsageError``.

    A value that a recovery brings back is brought back in the very list, deque, dict, set, array or tensor that lies here: the
    script may hold it in a variable of its own. So one of these may lie here at one place only: at two, a recovery would make two
    of it. ``reading`` is called before the script is shown anything: whoever joins a job must have heard by then what there is.
    """

    def __init__(self, reading: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._reading = reading

    def __getitem__(self, key: str) -> Any:
        self._reading()
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._reading()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self._reading()
        return super().__iter__()

    def __len__(self) -> int:
        self._reading()
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._reading()
        return super().__eq__(other)

    __hash__ = None

    def __repr__(self) -> str:
        self._reading()
        return super().__repr__()

    def __reversed__(self) -> Iterator[str]:
        self._reading()
        return super().__reversed__()

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        merged: dict[str, Any] = self.copy() | other
        return merged

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        merged: dict[str, Any] = other | self.copy()
        return merged

    def __delitem__(self, key: str) -> None:
        self._reading()
        super().__delitem__(key)

    def popitem(self) -> tuple[str, Any]:
        """As a dict's."""
        self._reading()
        return super().popitem()

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        self._reading()
        return super().get(key, default)

    def copy(self) -> dict[str, Any]:
        """A plain dict."""
        self._reading()
        return self._plain()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """As a dict's."""
        self._reading()
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """As a dict's."""
        self._reading()
        return super().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """As a dict's."""
        self._reading()
        return super().items()

    def pop(self, key: str, *default: Any) -> Any:
        """As a dict's."""
        self._reading()
        return super().pop(key, *default)

    def __setitem__(self, key: str, value: Any) -> None:
        try:
            values.pack(value)
        except CannotTravelError as error:
            raise _refusal(f"[{key!r}]{_joined(error)}") from None
        if not isinstance(key, str):
            raise UsageError(f"run.state has text for its keys, and {key!r} is a {type(key).__name__}")
        _check_places(self._plain() | {key: value})
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **named: Any) -> None:
        """As a dict's."""
        for key, value in dict(*others, **named).items():
            self[key] = value

    def __ior__(self, other: Any) -> "State":  # type: ignore[override]
        self.update(other)
        return self

    def packed(self) -> bytes:
        """All of it as it is now."""
        try:
            data = values.pack(self._plain())
        except CannotTravelError as error:
            raise _refusal(_joined(error)) from None
        _check_places(self._plain())
        return data

    def _plain(self) -> dict[str, Any]:
        return dict(super().items())

    def digests(self) -> tuple[tuple[str, str], ...]:
        """Of each value, by its name."""
        found = [(key, values.pack(value)) for key, value in self._plain().items()]
        return tuple((f"run.state[{key!r}]", digest(data)) for key, data in sorted(found))

    def replace(self, kept: Mapping[str, Any]) -> None:
        """Make it what was kept. It stays the same object, and so does each of its values that can be changed in place."""
        now, written = self._plain(), _Written()
        found = {key: _in_place(now.get(key), value, written) for key, value in kept.items()}
        self.clear()
        super().update(found)


def digest(data: bytes) -> str:
    """Of what is compared at the end."""
    return hashlib.sha256(data).hexdigest()[:16]


class _Written:
    """What was made something else: nothing is twice, as a whole or by a view of its memory."""

    def __init__(self) -> None:
        self._objects: dict[int, object] = {}
        self._ranges: list[tuple[int, int]] = []

    def takes(self, value: object) -> bool:
        """True at the first time."""
        if id(value) in self._objects:
            return False
        start, end = _memory(value)
        if any(start < other_end and other_start < end for other_start, other_end in self._ranges):
            return False
        self._objects[id(value)] = value
        if end > start:
            self._ranges.append((start, end))
        return True


def _memory(value: object) -> tuple[int, int]:
    """Its first byte and that behind its last."""
    if isinstance(value, np.ndarray) and value.size:
        first, unit, strides = value.__array_interface__["data"][0], value.itemsize, value.strides
    elif isinstance(value, torch.Tensor) and value.numel():
        unit = value.element_size()
        first, strides = value.data_ptr(), tuple(stride * unit for stride in value.stride())
    else:
        return 0, 0
    reaches = [(size - 1) * stride for size, stride in zip(value.shape, strides, strict=True)]
    return first + sum(min(0, reach) for reach in reaches), first + sum(max(0, reach) for reach in reaches) + unit


def _in_place(old: Any, new: Any, written: _Written) -> Any:
    """``old``, made what ``new`` is, where that can be; else ``new``."""
    if type(old) is not type(new) or not _can_be_written(old, new) or not written.takes(old):
        return new
    match old:
        case list():
            old[:] = [_in_place(before, value, written) for before, value in zip(old, new, strict=False)] + new[
                len(old) :
            ]
        case dict():
            found = {key: _in_place(old.get(key), value, written) for key, value in new.items()}
            old.clear()
            old.update(found)
        case set():
            old.clear()
            old.update(new)
        case deque():
            old.clear()
            old.extend(new)
        case np.ndarray():
            np.copyto(old, new)
        case torch.Tensor():
            with torch.no_grad():
                old.copy_(new)
    return old


def _can_be_written(old: Any, new: Any) -> bool:
    match old:
        case list() | dict() | set():
            return True
        case deque():
            return bool(old.maxlen == new.maxlen)
        case np.ndarray():
            has_places = all(stride or size < 2 for size, stride in zip(old.shape, old.strides, strict=True))
            return old.dtype == new.dtype and old.shape == new.shape and old.flags.writeable and has_places
        case torch.Tensor():
            has_places = all(stride or size < 2 for size, stride in zip(old.shape, old.stride(), strict=True))
            is_like = old.dtype == new.dtype and old.shape == new.shape and old.device == new.device
            return is_like and has_places and not old.is_inference()
    return False


def _check_places(found: dict[str, Any]) -> None:
    """Raises ``UsageError`` where the same thing that can be changed lies at two places."""
    places: dict[int, str] = {}
    waiting: list[tuple[str, Any]] = [(f"[{key!r}]", value) for key, value in found.items()]
    while waiting:
        place, value = waiting.pop()
        can_change = isinstance(value, list | deque | dict | set | np.ndarray | torch.Tensor)
        if can_change and (other := places.setdefault(id(value), place)) != place:
            first, second = sorted((place, other))
            raise UsageError(
                f"run.state{second} is the same {type(value).__name__} as run.state{first}, and a recovery would make two of "
                "it: put a copy there"
            )
        if isinstance(value, dict):
            waiting += [(f"{place}[{key!r}]", inner) for key, inner in value.items() if type(inner) not in _PLAIN]
        elif isinstance(value, list | deque | tuple):
            waiting += [(f"{place}[{at}]", inner) for at, inner in enumerate(value) if type(inner) not in _PLAIN]


_PLAIN = {int, float, str, bool, bytes, type(None)}


def _joined(error: CannotTravelError) -> str:
    text = str(error)
    return text if text.startswith("[") else f": {text}"


def _refusal(what: str) -> UsageError:
    return UsageError(
        f"run.state{what}, which cannot be kept: put numbers, text, lists, dicts, arrays or tensors there, and give what has a "
        "state_dict to run.keep(...)"
    )


def packed(value: Any, what: str) -> bytes:
    """A value that is told to all workers. Raises ``UsageError``."""
    try:
        data = values.pack(value)
    except CannotTravelError as error:
        raise UsageError(f"{what} takes numbers, text, lists, dicts, arrays or tensors: {error}") from None
    if len(data) > limits.STRING_BYTES:
        raise UsageError(
            f"{what} takes up to {limits.STRING_BYTES:,} bytes, and this has {len(data):,}: keep it in a file or in the model"
        )
    return data

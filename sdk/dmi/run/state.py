"""``run.state``: a small dict that is kept with the job, and takes only what can be."""

import hashlib
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

    A value that a recovery brings back is brought back in the very list, dict, set, array or tensor that lies here: the script
    may hold it in a variable of its own. ``reading`` is called before the script is shown anything: whoever joins a job must have
    heard by then what there is.
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

    def __ior__(self, other: Any) -> "State":  # type: ignore[override,misc]
        self.update(other)
        return self

    def packed(self) -> bytes:
        """All of it as it is now."""
        try:
            return values.pack(self._plain())
        except CannotTravelError as error:
            raise _refusal(_joined(error)) from None

    def _plain(self) -> dict[str, Any]:
        return dict(super().items())

    def digests(self) -> tuple[tuple[str, str], ...]:
        """Of each value, by its name."""
        found = [(key, values.pack(value)) for key, value in self._plain().items()]
        return tuple((f"run.state[{key!r}]", digest(data)) for key, data in sorted(found))

    def replace(self, kept: Mapping[str, Any]) -> None:
        """Make it what was kept. It stays the same object, and so does each of its values that can be changed in place."""
        now = self._plain()
        self.clear()
        super().update({key: _in_place(now.get(key), value) for key, value in kept.items()})


def digest(data: bytes) -> str:
    """Of what is compared at the end."""
    return hashlib.sha256(data).hexdigest()[:16]


def _in_place(old: Any, new: Any) -> Any:
    """``old``, made what ``new`` is, where that can be; else ``new``."""
    if type(old) is not type(new):
        return new
    match old:
        case list():
            old[:] = [_in_place(before, value) for before, value in zip(old, new, strict=False)] + new[len(old) :]
        case dict():
            before = dict(old)
            old.clear()
            old.update({key: _in_place(before.get(key), value) for key, value in new.items()})
        case set():
            old.clear()
            old.update(new)
        case np.ndarray() if old.dtype == new.dtype and old.shape == new.shape and old.flags.writeable:
            np.copyto(old, new)
        case torch.Tensor() if old.dtype == new.dtype and old.shape == new.shape and old.device == new.device:
            with torch.no_grad():
                old.copy_(new)
        case _:
            return new
    return old


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

"""``run.state``: a small dict that is kept with the job, and takes only what can be."""

from collections.abc import Mapping
from typing import Any

from dmi.errors import UsageError
from dmi_protocol import limits
from dmi_tensor import values
from dmi_tensor.values import CannotTravelError


class State(dict[str, Any]):
    """A dict whose values travel (see ``dmi_tensor.values``). What does not is refused where it is set, or, inside a value that
    was changed later, before the next step. Both raise ``UsageError``."""

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
            return values.pack(dict(self))
        except CannotTravelError as error:
            raise _refusal(_joined(error)) from None

    def replace(self, kept: Mapping[str, Any]) -> None:
        """Make it what was kept, and stay the same object: the script may hold it."""
        self.clear()
        super().update(kept)


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

"""How much of a model a process may hold, by what is free."""

from typing import Any

import pytest

from dmi.errors import RefusedError
from dmi.models import fitting
from dmi.models.fitting import share_of
from dmi_protocol import limits

_GB = 1_000_000_000


@pytest.mark.parametrize(
    ("free", "share"),
    [
        ([500], None),
        ([100, 400, 90], None),
        ([300, 300], 300),
        ([300, 200, 300], 300),
        ([390, 100, 250], 250),
        ([], None),
    ],
)
def test_as_few_stages_as_the_hosts_can_hold(free: list[int], share: int | None) -> None:
    assert share_of("big:1", 400, free) == share


def test_too_little_everywhere_is_refused() -> None:
    with pytest.raises(RefusedError, match="big:1 has 400 bytes, and the nodes have memory for 150, 100, 0 of it"):
        share_of("big:1", 400, [150, -20, 100])


class Asked:
    """A node that says what is free on three hosts, one of which is a witness and one does not answer."""

    def ask(self, verb: str, **_: Any) -> Any:
        if verb == "members":
            return [{"name": name, "witness": name == "w"} for name in ("a", "b", "c", "w")]
        free = {"a": 3 * _GB, "b": 3 * _GB, "c": None, "w": 100 * _GB}
        return [{"node": name, "memory_bytes": bytes_} for name, bytes_ in free.items()]


def test_hosts_are_asked_only_where_this_one_has_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    version = {"id": "big:1", "size_bytes": 4 * _GB}
    monkeypatch.setattr(fitting, "available_bytes", lambda: 100 * _GB)
    assert fitting.free_share(None, version) is None  # type: ignore[arg-type]
    monkeypatch.setattr(fitting, "available_bytes", lambda: 3 * _GB)
    assert fitting.free_share(Asked(), version) == 3 * _GB - limits.REPLICA_BYTES  # type: ignore[arg-type]

"""DMI: the hosts a team already owns as one machine for PyTorch.

``dmi.init`` begins a run inside a training script; ``dmi.connect`` asks a mesh, and ``dmi.aio.connect`` does so with
``await``. Names are loaded when they are first used, so that asking a mesh never waits for torch to be imported.
"""

import importlib
from typing import Any

_PLACES = {
    "init": ("dmi.run.begin", "init"),
    "Run": ("dmi.run.run", "Run"),
    "connect": ("dmi.mesh", "connect"),
    "aio": ("dmi.aio", None),
    "errors": ("dmi.errors", None),
}

__all__ = ["Run", "aio", "connect", "errors", "init"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'dmi' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _PLACES[name]
    loaded = importlib.import_module(module)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]

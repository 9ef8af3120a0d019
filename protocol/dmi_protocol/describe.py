"""Writes ``docs/wire.md`` from the messages themselves: ``python -m dmi_protocol.describe > docs/wire.md``."""

import inspect
import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command
from dmi_protocol.messages import blobs, consensus, control, membership, parameters, roles
from dmi_protocol.tensor_spec import TensorSpec
from dmi_protocol.version import PROTOCOL

_CHAPTERS: list[tuple[str, Any]] = [
    ("Membership, daemon to daemon", membership.MembershipMessage),
    ("Consensus, daemon to daemon", consensus.ConsensusMessage),
    ("Control, daemon to daemon", control.ControlMessage),
    ("Joining, under an invitation's key", control.Join | control.Welcomed | control.Refused),
    ("Files and logs, daemon to daemon", blobs.BlobMessage),
    ("Commands, in the log", Command),
    ("Daemon to its role process", roles.ToRole),
    ("Role process to its daemon", roles.FromRole),
    ("Workers and parameter servers", parameters.ParameterMessage),
]
_INSIDE: tuple[type[msgspec.Struct], ...] = (
    consensus.Entry,
    consensus.Snapshot,
    membership.Update,
    membership.Rumor,
    roles.RoleKey,
    roles.Endpoint,
    parameters.Region,
    parameters.Fingerprint,
    TensorSpec,
)


def document() -> str:
    """The whole text."""
    lines = [
        "# The wire",
        "",
        "Made from the messages by `python -m dmi_protocol.describe`; a test compares them.",
        "",
        f"Protocol version {PROTOCOL}. Between daemons a message is one frame of msgpack, `[version, message]`, of at most "
        f"{limits.MESSAGE_BYTES} bytes; a message is a map whose `type` names it. Collections have at most "
        f"{limits.COLLECTION_ITEMS} items, strings {limits.STRING_BYTES} bytes. Between role processes raw tensor frames of at "
        f"most {limits.TENSOR_FRAME_BYTES} bytes may follow, each described by a `TensorSpec` in the envelope. The channel of a "
        "role process and the control socket carry a length of 4 bytes, big-endian, before each msgpack value.",
    ]
    for title, union in _CHAPTERS:
        lines += ["", f"## {title}"]
        for kind in _members(union):
            lines += _message(kind)
    lines += ["", "## Parts of messages"]
    for kind in _INSIDE:
        lines += _message(kind)
    return "\n".join(lines) + "\n"


def _members(union: Any) -> tuple[type[msgspec.Struct], ...]:
    return get_args(union) if get_origin(union) is types.UnionType else (union,)


def _message(kind: type[msgspec.Struct]) -> Iterator[str]:
    tag = kind.__struct_config__.tag
    yield ""
    yield f"### `{tag or kind.__name__}`"
    yield ""
    yield " ".join((inspect.getdoc(kind) or "").split())
    fields = msgspec.structs.fields(kind)
    if fields:
        yield ""
        for field in fields:
            yield f"* `{field.name}`: {_name(field.type)}"


def _name(annotation: Any) -> str:
    """A type as a reader of the wire sees it."""
    if hasattr(annotation, "__supertype__"):
        return _name(annotation.__supertype__)
    if hasattr(annotation, "__metadata__"):
        return _name(annotation.__origin__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        inner = ", ".join(_name(argument) for argument in arguments if argument is not Ellipsis)
        return f"list of {inner}" if Ellipsis in arguments else f"({inner})"
    if origin is dict:
        return f"map from {_name(arguments[0])} to {_name(arguments[1])}"
    if origin is types.UnionType or str(origin) == "typing.Union":
        names = list(dict.fromkeys("null" if a is type(None) else _name(a) for a in arguments))
        return " or ".join(names) if len(names) <= 4 else f"one of {len(names)} kinds"
    if str(origin) == "typing.Literal":
        return " or ".join(f'"{argument}"' for argument in arguments)
    name = str(annotation.__name__)
    return {"str": "text", "int": "integer"}.get(name, name)


if __name__ == "__main__":
    print(document(), end="")

"""What consensus gives to the peer, beside effects for the shell: it stands in the effects' order."""

from msgspec import Struct

from dmi_protocol.effects import Effect
from dmi_protocol.messages.consensus import Entry, Snapshot


class ApplyEntries(Struct, frozen=True):
    """These entries are committed; they follow those of the ``ApplyEntries`` before."""

    entries: tuple[Entry, ...]


class Restore(Struct, frozen=True):
    """Forget the replicated state and take this one."""

    snapshot: Snapshot


Output = Effect | ApplyEntries | Restore

"""Two exceptions for two culprits: theirs closes a conversation, ours ends the process."""


class ProtocolError(Exception):
    """Somebody broke the protocol."""


class RemoteProtocolError(ProtocolError):
    """A peer sent bytes or a message that no correct peer sends. The shell drops it, counts it and goes on."""


class LocalProtocolError(ProtocolError):
    """Our own shell misused a machine. This is a bug of ours, and the process ends."""

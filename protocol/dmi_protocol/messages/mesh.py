"""Everything that one daemon says to another."""

from dmi_protocol.messages.blobs import BlobMessage
from dmi_protocol.messages.consensus import ConsensusMessage
from dmi_protocol.messages.control import ControlMessage
from dmi_protocol.messages.membership import MembershipMessage

Message = MembershipMessage | ConsensusMessage | ControlMessage
"""What machines exchange."""
Wire = Message | BlobMessage
"""What crosses a mesh link."""

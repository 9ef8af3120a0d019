"""All that crosses the sockets between role processes: who hears something of another kind of job takes it for nonsense."""

from dmi_protocol.messages.parameters import ParameterMessage
from dmi_protocol.messages.serving import ServingMessage

DataMessage = ParameterMessage | ServingMessage

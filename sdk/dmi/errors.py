"""What can go wrong, as one tree. The text of each is one line that names the thing, the cause and the next step."""


class DmiError(Exception):
    """Any failure that a user can meet. ``except dmi.errors.DmiError`` catches all of them."""


class UsageError(DmiError):
    """The script, or the call, asks for something that does not exist or cannot be."""


class NotYetError(UsageError):
    """Part of the design, and not built yet."""


class NoNodeError(DmiError):
    """No node could be reached."""


class NoQuorumError(DmiError):
    """The mesh cannot decide anything now: too many voters are away."""


class RefusedError(DmiError):
    """The mesh understood what was asked, and refuses it."""


class UnknownJobError(DmiError):
    """No job of that name."""


class JobFailedError(DmiError):
    """The job ended, and not well. The text is its reason."""


class NonFiniteLossError(DmiError):
    """A loss is NaN or infinite: training on would spoil every weight."""


class ExchangeError(DmiError):
    """The other processes of the job cannot be reached, or contradict this one."""

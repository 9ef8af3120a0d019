"""The only clock: milliseconds that never go back."""

import time

from dmi_protocol.instant import Instant


def now() -> Instant:
    """The present."""
    return Instant(time.monotonic_ns() // 1_000_000)


def unix() -> int:
    """Seconds since 1970, for what people and other hosts must understand."""
    return int(time.time())

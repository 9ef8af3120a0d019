"""How long a suspicion lasts: shorter as others confirm it (Lifeguard, section IV-B)."""

from math import log

from dmi_protocol.membership.settings import SwimSettings


def suspicion_ms(confirmations: int, members: int, settings: SwimSettings) -> int:
    """The time from the suspicion to the verdict, for ``confirmations`` accusers beside the first in a mesh of
    ``members``.

    ``max - (max - min) * log(c + 1) / log(k + 1)``, where ``k`` confirmations are expected: ``indirect`` of them, or as
    many as there are third parties. With nobody to confirm it is the minimum.
    """
    expected = min(settings.indirect, members - 3)
    low, high = settings.suspicion_min_ms, settings.suspicion_max_ms
    if expected < 1:
        return low
    share = log(confirmations + 1) / log(expected + 1)
    return max(low, round(high - (high - low) * share))

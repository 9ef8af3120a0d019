"""The formula of Lifeguard, against its table."""

import pytest

from dmi_protocol.membership.settings import SwimSettings
from dmi_protocol.membership.suspicion import suspicion_ms

SETTINGS = SwimSettings(suspicion_min_ms=1_000, suspicion_max_ms=4_000, indirect=3)


@pytest.mark.parametrize(
    ("confirmations", "members", "expected"),
    [
        (0, 2, 1_000),
        (0, 3, 1_000),
        (0, 4, 4_000),
        (1, 4, 1_000),
        (0, 9, 4_000),
        (1, 9, 2_500),
        (3, 9, 1_000),
        (9, 9, 1_000),
    ],
)
def test_it_shortens_with_the_logarithm_of_the_confirmations(confirmations: int, members: int, expected: int) -> None:
    assert suspicion_ms(confirmations, members, SETTINGS) == expected


def test_it_never_grows_with_confirmations() -> None:
    for members in range(2, 40):
        times = [suspicion_ms(confirmations, members, SETTINGS) for confirmations in range(10)]
        assert times == sorted(times, reverse=True)
        assert times[-1] == SETTINGS.suspicion_min_ms

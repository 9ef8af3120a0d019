"""Which versions may talk."""

import pytest

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.version import SPOKEN, check_version


@pytest.mark.parametrize("version", sorted(SPOKEN))
def test_what_we_speak_is_read(version: int) -> None:
    check_version(version)


@pytest.mark.parametrize("version", [0, -1, 99, 2**64, True, 1.0, "1", b"1", None, [], {}, [1], {"1": 1}], ids=repr)
def test_anything_else_is_the_peers_fault(version: object) -> None:
    with pytest.raises(RemoteProtocolError, match="protocol version"):
        check_version(version)

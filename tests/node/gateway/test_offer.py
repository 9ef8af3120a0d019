"""Which versions a request may be computed by."""

from random import Random

import pytest

from dmi_node.gateway.http import HttpError
from dmi_node.gateway.offer import Offer
from dmi_protocol import limits
from dmi_protocol.messages.roles import Versions
from dmi_protocol.model import ModelRef, TensorInfo
from tests.node.gateway.served import content

ONE, TWO, THREE = (ModelRef(f"net:{n}", content(TensorInfo("x", "float32", (None, 3)))) for n in (1, 2, 3))
OTHER = ModelRef("net:4", content(TensorInfo("z", "float32", (None, 3))))
ALL = frozenset({"net:1", "net:2", "net:3", "net:4"})


def offer(*told: Versions) -> Offer:
    found = Offer(ONE, Random(0))
    for versions in told:
        found.told(versions)
    return found


def test_the_current_one_and_what_is_alike_before_it() -> None:
    found = offer(Versions(TWO), Versions(THREE))
    assert found.choose(None, ALL).versions == ("net:3", "net:2", "net:1")
    assert found.choose(None, frozenset()).versions == ("net:3", "net:2", "net:1"), "nobody has any: it waits"


def test_one_that_takes_something_else_is_used_once_somebody_has_it() -> None:
    found = offer(Versions(OTHER))
    before = found.choose(None, frozenset({"net:1"}))
    assert (before.versions, before.contract.inputs[0].name) == (("net:1",), "x")
    after = found.choose(None, frozenset({"net:1", "net:4"}))
    assert (after.versions, after.contract.inputs[0].name) == (("net:4",), "z")


def test_a_version_that_is_named_and_no_other() -> None:
    found = offer(Versions(TWO, THREE, 10))
    assert found.choose("3", frozenset()).versions == ("net:3",)
    assert found.ref(None) == TWO
    for number in ("1", "9", "x"):
        with pytest.raises(HttpError, match="served in version 2 and 3"):
            found.choose(number, ALL)


def test_the_canary_gets_its_share_when_somebody_has_it() -> None:
    found = offer(Versions(ONE, TWO, 20))
    chosen = [found.choose(None, ALL).versions for _ in range(1_000)]
    assert 150 < chosen.count(("net:2",)) < 250
    assert set(chosen) == {("net:2",), ("net:1",)}
    assert found.choose(None, frozenset({"net:1"})).versions == ("net:1",)


def test_what_is_remembered_is_bounded() -> None:
    found = offer()
    for number in range(2, 3 * limits.VERSIONS_REMEMBERED):
        found.told(Versions(ModelRef(f"net:{number}", ONE.content)))
    assert len(found.choose(None, ALL).versions) == limits.VERSIONS_REMEMBERED

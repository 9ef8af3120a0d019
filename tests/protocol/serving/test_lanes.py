"""Which versions a stage offers and keeps."""

from dmi_protocol.serving.lanes import needed, offered


def test_the_first_stage_changes_over_once_all_later_ones_can() -> None:
    assert offered(["m:1"], ["m:2"], None, is_first=True) == ("m:1",), "it has nothing better"
    assert offered(["m:1", "m:2"], ["m:2"], None, is_first=True) == ("m:2",)
    assert offered(["m:1", "m:2"], ["m:2"], {"m:1"}, is_first=True) == ("m:1",)
    assert offered(["m:1", "m:2"], ["m:2"], {"m:1", "m:2"}, is_first=True) == ("m:2",)
    assert offered(["m:1", "m:2"], ["m:2", "m:1"], {"m:1", "m:2"}, is_first=True) == ("m:2", "m:1"), "a canary's"
    assert offered(["m:1"], ["m:1"], set(), is_first=True) == (), "nobody could go on with it"


def test_a_later_stage_offers_all_that_it_has() -> None:
    assert offered(["m:1", "m:2"], ["m:2"], None, is_first=False) == ("m:1", "m:2")
    assert offered(["m:1", "m:2"], ["m:2"], {"m:2"}, is_first=False) == ("m:2",)


def test_a_later_stage_keeps_what_may_still_be_given_to_it() -> None:
    assert needed(["m:2"], ["m:1", "m:2"], [], is_first=True) == {"m:1", "m:2"}
    assert needed(["m:2"], ["m:1", "m:2"], [("m:1", "m:2"), ("m:2",)], is_first=False) == {"m:1", "m:2"}
    assert needed(["m:2"], ["m:1", "m:2"], [("m:2",), ()], is_first=False) == {"m:2"}

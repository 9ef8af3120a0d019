"""What rides along: bounded in size and in number of times."""

from dmi_protocol.identity import NodeId
from dmi_protocol.membership.dissemination import Dissemination
from dmi_protocol.membership.settings import SwimSettings
from dmi_protocol.messages.membership import Update

A, B = NodeId("a" * 16), NodeId("b" * 16)
SETTINGS = SwimSettings(retransmit=3)


def test_each_piece_is_told_a_bounded_number_of_times() -> None:
    gossip: Dissemination[Update] = Dissemination(SETTINGS)
    gossip.add((A, ""), Update(A, "suspect", 1))
    told = 0
    while gossip.take(8, members=5):
        told += 1
    assert told == 3 * 3, "retransmit times log2 of five, rounded up"
    assert len(gossip) == 0


def test_the_least_told_goes_first_and_a_message_is_bounded() -> None:
    gossip: Dissemination[Update] = Dissemination(SETTINGS)
    for number in range(20):
        gossip.add((NodeId(f"{number:016x}"), ""), Update(NodeId(f"{number:016x}"), "dead", 0))
    first = gossip.take(8, members=64)
    second = gossip.take(8, members=64)
    assert len(first) == len(second) == 8
    assert not set(first) & set(second)


def test_newer_news_replaces_older_and_counts_anew() -> None:
    gossip: Dissemination[Update] = Dissemination(SETTINGS)
    gossip.add((A, ""), Update(A, "suspect", 1))
    gossip.take(8, members=2)
    gossip.add((A, ""), Update(A, "alive", 2))
    assert gossip.take(8, members=2) == (Update(A, "alive", 2),)
    gossip.drop(A)
    assert gossip.take(8, members=2) == ()

"""News that rides on other messages: the newest and least told first, each piece a bounded number of times."""

from typing import Generic, TypeVar

from dmi_protocol.identity import NodeId
from dmi_protocol.membership.settings import SwimSettings
from dmi_protocol.messages.membership import Rumor, Update

Piece = TypeVar("Piece", Update, Rumor)


class Dissemination(Generic[Piece]):
    """Pieces of news by what they are about; a newer piece about the same thing replaces the older one."""

    def __init__(self, settings: SwimSettings) -> None:
        self._settings = settings
        self._told: dict[tuple[NodeId, str], tuple[int, Piece]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def add(self, about: tuple[NodeId, str], piece: Piece) -> None:
        """Spread this from now on."""
        self._told[about] = (0, piece)

    def end(self, about: tuple[NodeId, str]) -> None:
        """Spread this no more."""
        self._told.pop(about, None)

    def drop(self, node: NodeId) -> None:
        """Forget what is about ``node``."""
        self._told = {about: told for about, told in self._told.items() if about[0] != node}

    def take(self, most: int, members: int) -> tuple[Piece, ...]:
        """Up to ``most`` pieces for one message to one of ``members`` members."""
        limit = self._settings.retransmit * max(1, members.bit_length())
        chosen = sorted(self._told.items(), key=lambda item: item[1][0])[:most]
        for about, (times, piece) in chosen:
            if times + 1 >= limit:
                del self._told[about]
            else:
                self._told[about] = (times + 1, piece)
        return tuple(piece for _, (_, piece) in chosen)

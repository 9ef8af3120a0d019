"""A member as another node sees it, and which news of it overrides which."""

from msgspec import Struct

from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.membership import Standing, Update

_RANK: dict[Standing, int] = {"alive": 0, "suspect": 1, "dead": 2, "left": 3}


class Member(Struct):
    """``accusers`` are those who suspect it, at this incarnation; ``since`` is when its standing changed."""

    standing: Standing
    incarnation: int
    since: Instant
    accusers: set[NodeId]

    def is_there(self) -> bool:
        """Is it alive, or only suspected not to be?"""
        return self.standing in {"alive", "suspect"}


def overrides(update: Update, member: Member) -> bool:
    """Does ``update`` say something newer than what is known (SWIM, 4.2)?

    Alive needs a higher incarnation. At the same one, suspect overrides alive, dead both, and left all: the member itself
    said so. What is said of an older incarnation says nothing about a newer one.
    """
    if update.incarnation != member.incarnation:
        return update.incarnation > member.incarnation
    return _RANK[update.standing] > _RANK[member.standing]

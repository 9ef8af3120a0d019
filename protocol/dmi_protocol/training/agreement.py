"""Do those who train one model agree about all that could change its bits?"""

from dmi_protocol.training.exchange import Disagree, Greeted


def difference(mine: Greeted, theirs: tuple[tuple[str, str], ...], other: int | None) -> Disagree | None:
    """The first field in which a worker's fingerprint differs from ``theirs``: worker ``other``'s, or with None that of those
    who made the checkpoint."""
    here, there = dict(mine.fields), dict(theirs)
    for field in sorted(here.keys() | there.keys()):
        if here.get(field) != there.get(field):
            return Disagree(mine.worker, other, field, here.get(field, ""), there.get(field, ""))
    return None

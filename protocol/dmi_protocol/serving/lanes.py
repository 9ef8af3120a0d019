"""Which versions of a model a replica asks for, offers and keeps, where it has a stage of it: pure."""

from collections.abc import Collection, Iterable, Sequence


def offered(
    ready: Sequence[str], wanted: Sequence[str], later: Collection[str] | None, *, is_first: bool
) -> tuple[str, ...]:
    """With which versions one may be asked: of those ``ready`` in memory, those that the ``later`` stages have, too (None: there
    are none). The first stage alone changes over: it offers what is ``wanted`` as soon as it can, and nothing beside. Any other
    one offers all that it has, for batches of the version before may be on their way."""
    able = [version for version in ready if later is None or version in later]
    if not is_first:
        return tuple(able)
    best = [version for version in wanted if version in able]
    return tuple(best if best and best[0] == wanted[0] else able)


def needed(wanted: Sequence[str], offers: Sequence[str], given: Iterable[Sequence[str]], *, is_first: bool) -> set[str]:
    """Which must stay in memory, beside those with which something is under way: the first stage's are what it offers, the
    others' what the stage before may still give, as each of its replicas has ``given`` to know."""
    return {*wanted, *(offers if is_first else ()), *(version for versions in given for version in versions)}

"""What the homes of a mesh on this machine tell before any of its nodes is started."""

from collections.abc import Sequence, Set
from pathlib import Path

from dmi_node.home import Home, owner_of
from dmi_node.storage.journal import IDENTITY, Journal, JournalError, has_fact
from dmi_protocol.consensus.log import Log
from dmi_protocol.consensus.quorum import is_quorum
from dmi_protocol.identity import NodeId, PublicKey, node_id


def is_member(home: Path) -> bool:
    """Whether the node of this home has founded or joined a mesh. Raises ``JournalError``."""
    return has_fact(Home(home).state, IDENTITY)


def why_not(root: Path, homes: Sequence[Path]) -> str | None:
    """One line on why the nodes at ``homes``, all under ``root``, would never agree on anything; None when they can.

    Raises ``JournalError``.
    """
    below = sorted(root.glob("n*"), key=lambda path: (len(path.name), path.name))
    members = {_node(path): path for path in below if is_member(path)}
    if not members:
        return None
    if homes[0] not in members.values():
        names = ", ".join(path.name for path in members.values())
        return f"{names} under {root} belong to a mesh whose n0 is gone: move {root} away, or use another --home"
    running = {path for path in members.values() if owner_of(path) is not None}
    voters = _voters([path for path in members.values() if path not in running])
    coming = {node for node, path in members.items() if path in homes or path in running}
    if not voters or is_quorum(voters, coming):
        return None
    short = (
        f"the mesh under {root} has {len(voters)} voters and decides nothing with {len(voters & coming)} of them: "
        f"it needs {len(voters) // 2 + 1}"
    )
    if not is_quorum(voters, members):
        return f"{short}, and only {len(voters & set(members))} have a home here; move {root} away to begin anew"
    most = max(int(path.name[1:]) for path in members.values() if path.name[1:].isdigit()) + 1
    return f"{short}; `dmi-node up --nodes {most} --home {root}` starts them all"


def _node(home: Path) -> NodeId:
    return node_id(PublicKey(Home(home).public_key.read_text().strip()))


def _voters(homes: Sequence[Path]) -> Set[NodeId]:
    """Who votes, as the most complete of the logs has it: the last to be changed are in a quorum of them."""
    found: tuple[tuple[int, int], Set[NodeId]] = ((0, 0), frozenset())
    for home in homes:
        try:
            journal = Journal(Home(home).state)
        except JournalError:
            continue  # its daemon will say so itself
        restored = journal.restore()
        journal.close()
        log = Log(restored.snapshot, restored.entries)
        found = max(found, ((log.last_term, log.last), log.voters_at(log.last)), key=lambda each: each[0])
    return found[1]

"""Which nodes of a mesh on this machine can agree, told from their homes alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from dmi_node.cli.founded import is_member, why_not
from dmi_node.home import Home
from dmi_node.storage.journal import IDENTITY, Journal
from dmi_protocol.effects import PersistEntries, PersistSnapshot
from dmi_protocol.identity import NodeId, node_id
from dmi_protocol.messages.consensus import Entry, Snapshot, Voters
from dmi_wire.keys import KeyPair


class Machine:
    """Homes of nodes under one directory, and who of them votes."""

    def __init__(self, root: Path, nodes: int) -> None:
        self.root = root
        self.homes = [root / f"n{index}" for index in range(nodes)]
        self.keys = [KeyPair.make() for _ in self.homes]
        for home, keys in zip(self.homes, self.keys, strict=True):
            Home(home).make()
            Home(home).public_key.write_text(f"{keys.public}\n")
            journal = Journal(Home(home).state)
            journal.keep(IDENTITY, b"somebody")
            journal.close()

    def ids(self, indexes: Sequence[int]) -> tuple[NodeId, ...]:
        return tuple(node_id(self.keys[index].public) for index in indexes)

    def vote(self, at: Sequence[int], voters: Sequence[int], changed: Sequence[int] | None = None) -> None:
        """The disks of ``at`` have a snapshot with ``voters``, and perhaps an entry that has changed them since."""
        for index in at:
            journal = Journal(Home(self.homes[index]).state)
            journal.write([PersistSnapshot(Snapshot(7, 2, self.ids(voters), b""), keep_log=True)])
            if changed is not None:
                journal.write([PersistEntries(8, (Entry(8, 2, Voters(self.ids(changed))),))])
            journal.close()

    def why_not(self, nodes: int) -> str | None:
        return why_not(self.root, [self.root / f"n{index}" for index in range(nodes)])


@pytest.mark.parametrize(("nodes", "can"), [(1, False), (2, False), (3, True), (4, True), (5, True), (6, True)])
def test_a_majority_of_the_voters_is_enough(tmp_path: Path, nodes: int, can: bool) -> None:
    machine = Machine(tmp_path, 5)
    machine.vote(range(5), range(5))
    said = machine.why_not(nodes)
    assert (said is None) == can
    if said is not None:
        assert f"has 5 voters and decides nothing with {nodes} of them: it needs 3" in said
        assert f"`dmi-node up --nodes 5 --home {tmp_path}` starts them all" in said


def test_a_new_directory_may_become_any_mesh(tmp_path: Path) -> None:
    assert why_not(tmp_path / "none", [tmp_path / "none" / "n0"]) is None
    (tmp_path / "n1").mkdir()
    assert not is_member(tmp_path / "n1")
    assert why_not(tmp_path, [tmp_path / "n0", tmp_path / "n1"]) is None


def test_the_most_complete_log_says_who_votes(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 3)
    machine.vote([0], [0])
    assert machine.why_not(1) is None
    machine.vote([1, 2], [0], changed=[0, 1])
    assert "has 2 voters and decides nothing with 1 of them" in str(machine.why_not(1))
    assert machine.why_not(2) is None


def test_a_node_that_runs_already_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 3)
    machine.vote(range(3), range(3))
    running = Home(machine.homes[2])
    running.lock()
    try:
        assert machine.why_not(1) is None
    finally:
        running.unlock()
    assert machine.why_not(1) is not None


def test_voters_whose_homes_are_gone_do_not_come_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 3)
    machine.vote(range(3), range(3))
    for index in (1, 2):
        machine.homes[index].rename(tmp_path / f"away-{index}")
    assert "only 1 have a home here; move" in str(machine.why_not(3))


def test_a_mesh_without_its_first_home_is_not_founded_anew_beside_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 3)
    machine.homes[0].rename(tmp_path / "away-0")
    assert "n1, n2 under" in str(machine.why_not(3))

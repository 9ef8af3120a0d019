"""Which nodes play which role."""

import pytest

from dmi_protocol.cluster.command import TrainingSpec
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.training.placing import choose, wanted_nodes

A, B, C = (NodeId(letter * 16) for letter in "abc")


@pytest.mark.parametrize(
    ("workers", "servers", "wanted"), [(None, None, 1), (2, None, 2), (None, 3, 3), (1, 3, 3), (3, 1, 3)]
)
def test_a_job_wants_a_node_for_each_role_of_a_kind(workers: int | None, servers: int | None, wanted: int) -> None:
    spec = TrainingSpec("job", "t.py", workers=workers, servers=servers)
    assert wanted_nodes(spec) == wanted
    nodes = [A, B, C]
    assert choose(spec, nodes[: wanted - 1], {}) is None
    assert choose(spec, nodes[:wanted], {}) is not None


def test_by_default_everybody_works_and_serves() -> None:
    chosen = choose(TrainingSpec("job", "t.py"), [C, A, B], {})
    assert chosen is not None
    assert chosen.workers == chosen.servers == (A, B, C)


def test_the_least_loaded_come_first_and_the_order_of_the_nodes_does_not_matter() -> None:
    spec = TrainingSpec("job", "t.py", workers=2, servers=1)
    chosen = choose(spec, [A, B, C], {A: 2, C: 1})
    assert chosen == choose(spec, [C, B, A], {C: 1, A: 2})
    assert chosen is not None
    assert (chosen.workers, chosen.servers, chosen.shards) == ((B, C), (B, C), 1), "the second has a backup"

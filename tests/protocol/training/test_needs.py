"""What a training will need, told before it begins."""

from dmi_protocol.messages.roles import Assignment, Replicas
from dmi_protocol.training.layout import Definition, ParameterSpec, lay_out
from dmi_protocol.training.needs import needs, told

MODEL = Definition(
    (ParameterSpec("weight", (1000, 500), "float32", 0),),
    (),
    (("weight",),),
    "SGD",
    whole=False,
    leaves=8,
    clip_norm=None,
)


def assignment(workers: int, *shards: Replicas) -> Assignment:
    return Assignment(tuple(range(workers)), (1.0,) * workers, 0, shards)


def test_the_formulas() -> None:
    three = assignment(3, Replicas(0, (), (1,)), Replicas(1, (), (2,)), Replicas(2, (), (0,)))
    found = needs(MODEL, lay_out(MODEL), three, kept=1)
    size = 2_000_000
    assert found.parameters == 500_000
    assert found.parameter_bytes == size
    assert found.worker_bytes == size * (4 + 1 + 2), "three leaves at most"
    assert found.server_bytes == round(size / 3 * (2 * 3 + 2 * 3 + 2 * 2))
    assert found.step_bytes == 3 * size, "three leaves are two subtrees"


def test_one_alone_needs_no_backups() -> None:
    found = needs(MODEL, lay_out(MODEL), assignment(1, Replicas(0)), kept=0)
    assert found.worker_bytes == 2_000_000 * (5 + 3)
    assert found.server_bytes == 2_000_000 * (2 + 2 + 2)


def test_a_line_for_people() -> None:
    line = told(needs(MODEL, lay_out(MODEL), assignment(2, Replicas(0), Replicas(1)), kept=2), 2, 2)
    assert line.startswith("500,000 parameters (2 MB); beside torch and the data each of 2 workers needs about 14 MB")
    assert "\n" not in line

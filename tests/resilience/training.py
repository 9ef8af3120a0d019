"""The trainings that are disturbed, the mesh that they run on, and the hash that must come out."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.hosts.hosts import WHY_NOT, Hosts
from tests.mesh.local import ROOT, LocalMesh, command
from tests.mesh.test_same_bits import plain, sha256

NODES = 5
LEAVES = 8


class Script(NamedTuple):
    """A training, with as many epochs as last 40 s on five nodes of a machine with two cores."""

    path: str
    epochs: int
    is_large: bool = False
    """An epoch takes long already: no other number of them is asked for."""

    def arguments(self, epochs: int | None) -> list[str]:
        """What stands after the script's name."""
        count = str(self.epochs if self.is_large else epochs or self.epochs)
        return [count] if self.path.startswith("tests/") else ["--epochs", count]


SCRIPTS = {
    "digits": Script("examples/digits.py", 80),
    "transformer": Script("examples/transformer.py", 80),
    "alexnet": Script("examples/alexnet.py", 1, is_large=True),
    "wide": Script("tests/resilience/scripts/wide.py", 20),
}


class Plan(NamedTuple):
    """What is the same for all runs: None means the default of the script or of the product."""

    home: Path
    epochs: int | None
    backups: int | None


@cache
def expected(script: str, plan: Plan) -> str:
    """The hash of the plain run."""
    chosen = SCRIPTS[script]
    return plain(plan.home / f"{script}.safetensors", chosen.path, *chosen.arguments(plan.epochs))


@contextmanager
def a_mesh(home: Path, disk_mib: Mapping[int, int]) -> Iterator[LocalMesh]:
    """Five nodes that are not up yet; hosts of their own where that can be."""
    directory = Path(tempfile.mkdtemp(dir=home))
    mesh = LocalMesh(directory / "mesh", NODES) if WHY_NOT else Hosts(directory / "mesh", NODES, disk_mib)
    try:
        yield mesh
    finally:
        mesh.close()
    shutil.rmtree(directory)


def submit(mesh: LocalMesh, via: int, script: str, plan: Plan, flags: Sequence[str] = ()) -> str:
    """The id of a new job."""
    chosen = SCRIPTS[script]
    backups = () if plan.backups is None else ("--backups", plan.backups)
    which = (ROOT / chosen.path, "--", *chosen.arguments(plan.epochs))
    said = command("submit", "--json", "--leaves", LEAVES, *flags, *backups, *which, home=mesh.node(via)).stdout
    return str(json.loads(said.strip().splitlines()[-1])["id"])


def exported(mesh: LocalMesh, via: int, job: str, plan: Plan) -> str:
    """The hash of what a job has made."""
    path = plan.home / "mesh.safetensors"
    command("export", job, path, home=mesh.node(via))
    return sha256(path)

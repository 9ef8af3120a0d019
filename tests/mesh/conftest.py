"""Meshes to try things on. The one of the session is shared; a test that kills makes its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mesh.local import LocalMesh


@pytest.fixture
def make_mesh(tmp_path: Path) -> Iterator[Callable[[int], LocalMesh]]:
    """Call it with a number of nodes; whatever it made is taken down after the test."""
    made: list[LocalMesh] = []

    def make(size: int) -> LocalMesh:
        mesh = LocalMesh(tmp_path / f"mesh{len(made)}", size)
        made.append(mesh)
        mesh.up()
        return mesh

    yield make
    for mesh in made:
        mesh.close()


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """Five nodes for tests that leave them as they were."""
    mesh = LocalMesh(tmp_path_factory.mktemp("five"), 5)
    mesh.up()
    yield mesh
    mesh.close()

"""A temporary copy of the protocol package with one patch applied, and the simulator run on it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

import dmi_protocol

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MOST_CHANGED_LINES = 5


class Caught(Struct, frozen=True):
    """Where a planted bug was found; ``seed`` is None when it was not."""

    seed: int | None
    checker: str
    what: str


def patches() -> dict[str, Path]:
    """By the name of the bug."""
    return {path.stem: path for path in sorted(HERE.glob("*.patch"))}


def changed_lines(patch: Path) -> int:
    """The lines that a patch takes away or puts in, whichever are more."""
    lines = patch.read_text().splitlines()
    removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    return max(removed, added)


@contextmanager
def planted(patch: Path | None) -> Iterator[Path]:
    """A directory with a copy of ``dmi_protocol`` that has the bug; without a patch it is a faithful copy."""
    with TemporaryDirectory(prefix="planted-") as directory:
        copy = Path(directory)
        source = Path(dmi_protocol.__file__).parent
        shutil.copytree(source, copy / "dmi_protocol", ignore=shutil.ignore_patterns("__pycache__"))
        if patch is not None:
            command = ["git", "apply", "--whitespace=nowarn", "-p2", str(patch)]
            subprocess.run(command, cwd=copy, check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": directory})
        yield copy


def hunt(patch: Path | None, first: int, seeds: int) -> Caught:
    """Run the simulator on the copy, from seed ``first`` on, until something is violated."""
    with planted(patch) as copy:
        path = os.pathsep.join([str(copy), str(ROOT)])
        command = [sys.executable, "-m", "tests.simulation", "--stop", "--first", str(first), "--seeds", str(seeds)]
        environment = {**os.environ, "PYTHONPATH": path, "DMI_PLANTED": str(copy)}
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment, check=False)
    found = re.search(r"^seed (\d+): ([^:]+): (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        if "seeds a second" not in done.stdout:
            raise RuntimeError(f"the simulator did not run: {done.stderr}")
        return Caught(None, "", "")
    return Caught(int(found[1]), found[2], found[3])

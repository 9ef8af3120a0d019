"""Another script, which stops for a moment after each step. In the middle it says so in a folder, and waits until it may go on,
so that something can happen to it; then it makes steps slowly, so that somebody can come in at one of them, until it is told that
somebody has computed: paced.py SECONDS FOLDER SCRIPT ARGS."""

import runpy
import sys
import time
from pathlib import Path
from typing import Any

from dmi.run.training import Training

MIDDLE = 8
PATIENCE_S = 60.0
STEP_S = 1.5
"""So long each step waits for whoever is to come in, as long as nobody has."""

pause, folder, script = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
install = Training.install


def slowly(self: Training, *arguments: Any) -> None:
    install(self, *arguments)
    time.sleep(pause)
    if self.step >= MIDDLE:
        (folder / "in the middle").touch()
        assert within(PATIENCE_S, folder / "go on"), "nobody lets it go on"
        within(STEP_S, folder / "has come in")


def within(seconds: float, file: Path) -> bool:
    """Is it there in time?"""
    end = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return file.exists()


Training.install = slowly  # type: ignore[method-assign]
sys.argv[:] = sys.argv[3:]
runpy.run_path(script, run_name="__main__")

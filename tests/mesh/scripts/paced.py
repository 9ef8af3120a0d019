"""Another script, which stops for a moment after each step. In the middle it says so in a folder, and waits until it may go on,
so that something can happen to it: paced.py SECONDS FOLDER SCRIPT ARGS."""

import runpy
import sys
import time
from pathlib import Path
from typing import Any

from dmi.run.training import Training

MIDDLE = 8
PATIENCE_S = 60.0

pause, folder, script = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
install = Training.install


def slowly(self: Training, *arguments: Any) -> None:
    install(self, *arguments)
    time.sleep(pause)
    if self.step >= MIDDLE:
        (folder / "in the middle").touch()
        end = time.monotonic() + PATIENCE_S
        while not (folder / "go on").exists():
            assert time.monotonic() < end, "nobody lets it go on"
            time.sleep(0.02)


Training.install = slowly  # type: ignore[method-assign]
sys.argv[:] = sys.argv[3:]
runpy.run_path(script, run_name="__main__")

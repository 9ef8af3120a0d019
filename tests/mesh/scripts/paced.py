"""Another script, which stops for a moment after each step, and somewhere in the middle until a file is there, so that something
can happen to it: paced.py SECONDS FILE SCRIPT ARGS."""

import runpy
import sys
import time
from pathlib import Path
from typing import Any

from dmi.run.training import Training

MIDDLE = 8
PATIENCE_S = 60.0

pause, sign, script = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
install = Training.install


def slowly(self: Training, *arguments: Any) -> None:
    install(self, *arguments)
    time.sleep(pause)
    end = time.monotonic() + PATIENCE_S
    while self.step >= MIDDLE and not sign.exists():
        assert time.monotonic() < end, f"nobody has made {sign}"
        time.sleep(0.02)


Training.install = slowly  # type: ignore[method-assign]
sys.argv[:] = sys.argv[3:]
runpy.run_path(script, run_name="__main__")

"""Another script, with a pause after each step, so that something can happen in the middle: paced.py SECONDS SCRIPT ARGS."""

import runpy
import sys
import time
from typing import Any

from dmi.run.training import Training

pause, script = float(sys.argv[1]), sys.argv[2]
install = Training.install


def slowly(self: Training, *arguments: Any) -> None:
    install(self, *arguments)
    time.sleep(pause)


Training.install = slowly  # type: ignore[method-assign]
sys.argv[:] = sys.argv[2:]
runpy.run_path(script, run_name="__main__")

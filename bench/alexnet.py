"""A model of real size: AlexNet (57 million parameters) on three nodes of this machine beside the same script alone, in one
run: mean seconds of a step, the peak memory of each role beside what was said that it would need, and the hashes.

``python -m bench.alexnet`` trains one epoch of digits with all defaults.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dmi
from dmi.mesh import Mesh as Client

BIN = Path(sys.executable).parent
SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "alexnet.py"
_WITHIN_S = 600.0
_LOOK_S = 0.1


def plain(directory: Path, epochs: int, steps: int) -> tuple[float, str]:
    """The mean seconds of a step alone, start and end not counted, and the hash of the weights."""
    took = []
    for count in (0, epochs):
        begin = time.monotonic()
        environment = {**os.environ, "DMI_EXPORT": str(directory / "plain.safetensors")}
        command = [sys.executable, SCRIPT, "--epochs", str(count)]
        subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True, timeout=_WITHIN_S)
        took.append(time.monotonic() - begin)
    return (took[1] - took[0]) / steps, hashlib.sha256((directory / "plain.safetensors").read_bytes()).hexdigest()


class Mesh:
    """Three nodes of this machine."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.peaks: dict[str, int] = {}
        """By role, the most memory that one of its processes had, in bytes."""

    def ask(self, *words: str) -> str:
        """What the command prints."""
        environment = {**os.environ, "DMI_HOME": str(self._home)}
        done = subprocess.run(
            [BIN / "dmi-node", *words], env=environment, check=True, capture_output=True, text=True, timeout=_WITHIN_S
        )
        return done.stdout

    def look(self, node: Client) -> None:
        """Note how much memory the role processes have had so far."""
        for role in node.roles():
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{role['pid']}/status").read_text().splitlines()
                peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
                self.peaks[role["role"]] = max(peak, self.peaks.get(role["role"], 0))

    def train(self, epochs: int) -> tuple[str, float, int]:
        """The job, the mean seconds of a step after the first that was seen, and the number of steps."""
        self.ask("up", "--nodes", "3", "--home", str(self._home), "--detach")
        told = self.ask("submit", "--json", str(SCRIPT), "--", "--epochs", str(epochs))
        job = str(json.loads(told.splitlines()[-1])["id"])
        node = dmi.connect(self._home / "n0")  # a command for each look would take a core
        seen: list[tuple[float, int]] = []
        end, pause = time.monotonic() + _WITHIN_S, threading.Event()
        while True:
            (now,) = node.status()["jobs"]
            if now["step"] and (not seen or seen[-1][1] != now["step"]):
                seen.append((time.monotonic(), now["step"]))
                self.look(node)
            if now["state"] in {"succeeded", "failed"}:
                break
            if time.monotonic() > end:
                raise SystemExit(f"the job is {now['state']} after {_WITHIN_S:.0f} s")
            pause.wait(_LOOK_S)
        if now["state"] != "succeeded" or len(seen) < 2:
            raise SystemExit(f"the job {now['state']}: {self.ask('why', job)}")
        (begin, first), (last, steps) = seen[0], seen[-1]
        return job, (last - begin) / (steps - first), int(steps)


def main() -> None:
    """Measure and print; exit code 1 when the weights differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--epochs", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        mesh = Mesh(directory / "mesh")
        try:
            job, ours, steps = mesh.train(chosen.epochs)
            needs = next(line for line in mesh.ask("logs", job).splitlines() if "parameters" in line)
            mesh.ask("export", job, str(directory / "mesh.safetensors"))
        finally:
            mesh.ask("down", "--home", str(directory / "mesh"))
        alone, expected = plain(directory, chosen.epochs, steps)
        found = hashlib.sha256((directory / "mesh.safetensors").read_bytes()).hexdigest()
    print(needs)
    print(f"alone        {alone:.2f} s a step (mean of {steps})")
    print(f"three nodes  {ours:.2f} s a step, {ours / alone:.2f} times as long, on the same cores")
    for role, peak in sorted(mesh.peaks.items()):
        print(f"peak memory of a {role}: {peak / 1e6:.0f} MB, torch included")
    print(f"the weights are {'the same' if found == expected else 'DIFFERENT'}: {found[:12]}")
    raise SystemExit(found != expected)


if __name__ == "__main__":
    main()

"""``make demo``: three nodes train a real model; a plain run of the same script gives the same weights, bit for bit.

Every line that starts with ``$`` is a command that you could have typed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".demo"
BIN = Path(sys.executable).parent
SCRIPT = "examples/digits.py"


def say(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Show ``command`` and run it; its output goes straight to the screen."""
    shown = " ".join([*(f"{name}={value}" for name, value in environment.items()), command])
    print(f"\n$ {shown}", flush=True)
    program, *arguments = command.split()
    scrubbed = {name: value for name, value in os.environ.items() if not name.startswith("DMI_")}
    return subprocess.run(
        [BIN / program, *arguments], env=scrubbed | environment, cwd=ROOT, text=True, check=True, timeout=300
    )


def sha256(path: Path) -> str:
    """The digest of the file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Run the demonstration; the exit status is 0 when the two hashes are equal."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    home, mesh, plain = f"--home {HOME.name}", HOME / "mesh.safetensors", HOME / "plain.safetensors"
    start = time.monotonic()
    say(f"dmi-node up --nodes 3 {home} --detach")
    try:
        say(f"dmi-node status {home}")
        say(f"dmi-node submit {SCRIPT} --name digits --wait {home}")
        say(f"dmi-node logs digits {home}")
        say(f"dmi-node export digits {mesh.relative_to(ROOT)} {home}")
    finally:
        say(f"dmi-node down {home}")
    say(f"python {SCRIPT}", DMI_EXPORT=str(plain.relative_to(ROOT)))
    ours, theirs = sha256(mesh), sha256(plain)
    print(f"\nsha256 of the weights from three nodes     {ours}")
    print(f"sha256 of the weights from one plain run   {theirs}")
    print(f"{'the same bits' if ours == theirs else 'THEY DIFFER'}, after {time.monotonic() - start:.0f} s")
    return 0 if ours == theirs else 1


if __name__ == "__main__":
    sys.exit(main())

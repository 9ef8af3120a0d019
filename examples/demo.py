"""``make demo``: three nodes train a real model; a plain run of the same script gives the same weights, bit for bit. Then they
compute 1,797 images with it, one node is killed in the middle, and the results are those of a plain loop, byte for byte. At last
they serve it: a request is answered, a node is killed, and the same request is answered.

Every line that starts with ``$`` is a command that you could have typed.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import dmi

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".demo"
BIN = Path(sys.executable).parent
SCRIPT = "examples/digits.py"
IMAGES = "examples/images"
VICTIM = "n2"


def say(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Show ``command`` and run it; its output goes straight to the screen."""
    shown = " ".join([*(f"{name}={value}" for name, value in environment.items()), command])
    print(f"\n$ {shown}", flush=True)
    program, *arguments = command.split()
    scrubbed = {name: value for name, value in os.environ.items() if not name.startswith("DMI_")}
    return subprocess.run(
        [BIN / program, *arguments], env=scrubbed | environment, cwd=ROOT, text=True, check=True, timeout=300
    )


def kill_in_the_middle(job: str) -> None:
    """``kill -9`` of a node, and all that it runs, once some of the images have results and others have not."""
    for seen in dmi.connect(HOME / "n0").job(job).events():
        if seen["step"]:
            os.kill(int((HOME / VICTIM / "pid").read_text().split()[0]), signal.SIGKILL)
            print(f"\n{seen['step']:,} of {seen['steps']:,} images are computed: kill -9 {VICTIM}", flush=True)
            return


def infer(home: str) -> tuple[Path, float]:
    """All images, on three nodes of which one is killed; where the results are, and the share of those that are right."""
    out = HOME / "results"
    config = f"{IMAGES}/infer.toml --out {out.relative_to(ROOT)}"
    say(f"python {IMAGES}/make_images.py {HOME.name}/images")
    say(f"dmi-node models add digits --job digits --model {IMAGES}/net.py:make {home}")
    say(f"dmi-node infer {config} --detach {home}")
    kill_in_the_middle("infer-digits")
    say(f"dmi-node infer {config} --resume {home}")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return out / "results.jsonl", sum(row["id"].endswith(f"-{row['category']}.png") for row in rows) / len(rows)


def serve(home: str) -> bool:
    """The digits served on three nodes: is the same request answered in the same way before and after a node is killed?"""
    node = subprocess.Popen(
        [BIN / "dmi-node", "run", "--home", HOME / VICTIM],
        env={name: value for name, value in os.environ.items() if not name.startswith("DMI_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(f"\n$ dmi-node run --home {HOME.name}/{VICTIM} &        # the node that was killed is back", flush=True)
    mesh = dmi.connect(HOME / "n0")
    try:
        _until(lambda: all(member["state"] == "alive" for member in mesh.members()), "all nodes are alive")
        say(f"dmi-node serve digits --replicas 3 {home}")
        _until(lambda: len(set(mesh.deployments()[0]["replicas"])) == 3, "a replica on each node")
        found = mesh.deployments()[0]
        url = dict(zip(found["gateways"], found["urls"], strict=True))["n0"]
        say(f"dmi-node status {home}")
        before = _ask(url)
        node.kill()
        node.wait()
        print(f"\nkill -9 {VICTIM}", flush=True)
        after = _ask(url)
        say(f"dmi-node unserve digits {home}")
    finally:
        node.kill()
        node.wait()
    return before == after


def _ask(url: str) -> list[float]:
    """The scores of one image of a five."""
    pixels = np.asarray(Image.open(next((HOME / "images").glob("*-5.png"))), np.float32) / 255
    body = json.dumps({"instances": [np.broadcast_to(pixels, (1, 8, 8)).tolist()]})
    print(f"\n$ curl -d '{body[:40]}...' {url}/v1/models/digits:predict", flush=True)
    with urllib.request.urlopen(f"{url}/v1/models/digits:predict", body.encode(), timeout=40) as answer:
        said = answer.read().decode()
    print(said, flush=True)
    scores: list[float] = json.loads(said)["predictions"][0]
    assert max(range(10), key=scores.__getitem__) == 5, "a five is taken for something else"
    return scores


def _until(look: Callable[[], bool], what: str) -> None:
    """Raises ``TimeoutError`` when it is not so within a minute."""
    end = time.monotonic() + 60
    while not look():
        if time.monotonic() > end:
            raise TimeoutError(f"not within a minute: {what}")
        time.sleep(0.1)


def sha256(path: Path) -> str:
    """The digest of the file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Run the demonstration; the exit status is 0 when the hashes are equal, those of the weights and those of the results."""
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
        results, accuracy = infer(home)
        is_served = serve(home)
    finally:
        say(f"dmi-node down {home}")
    say(f"python {SCRIPT}", DMI_EXPORT=str(plain.relative_to(ROOT)))
    loop = HOME / "plain.jsonl"
    say(f"python {IMAGES}/plain_loop.py {plain.relative_to(ROOT)} {HOME.name}/images {loop.relative_to(ROOT)}")
    weights, rows = sha256(mesh) == sha256(plain), sha256(results) == sha256(loop)
    print(f"\nsha256 of the weights from three nodes     {sha256(mesh)}")
    print(f"sha256 of the weights from one plain run   {sha256(plain)}")
    print("the same bits" if weights else "THEY DIFFER")
    print(f"\nsha256 of the results, one node killed     {sha256(results)}")
    print(f"sha256 of the results of a plain loop      {sha256(loop)}")
    print(
        f"{'the same bytes' if rows else 'THEY DIFFER'}, accuracy {accuracy:.4f}, after {time.monotonic() - start:.0f} s"
    )
    print("answered alike, one node killed" if is_served else "ANSWERED DIFFERENTLY")
    return 0 if weights and rows and is_served else 1


if __name__ == "__main__":
    sys.exit(main())

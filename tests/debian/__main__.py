"""``make hosts``: three booted Debian systems are installed as ``docs/operations.md`` says, and are what it promises.

They found a mesh and join it, train while one of them loses its power and another is rebooted, have a daemon that stands still
ended by the watchdog, and serve with a token. What they train has the bytes of a plain run.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.debian import ground
from tests.debian.page import commands
from tests.debian.system import Bridge, System, until

PAGE = ground.ROOT / "docs" / "operations.md"
DIGITS = (ground.ROOT / "examples" / "digits.py").read_text()
SLOWLY = """
import time
from dmi.run.training import Training
install = Training.install
def slowly(self, *arguments):
    install(self, *arguments)
    time.sleep(0.05)
Training.install = slowly
"""
MODEL = """
import torch
from torch import nn
torch.manual_seed(0)
torch.export.save(torch.export.export(nn.Linear(4, 2).eval(), (torch.ones(1, 4),)), "/root/model.pt2")
"""
ASK = """
import json, sys, urllib.request, urllib.error
question = json.dumps({"instances": [[1, 2, 3, 4]]}).encode()
headers = {"Authorization": "Bearer " + sys.argv[2]} if len(sys.argv) > 2 else {}
try:
    print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], question, headers), timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
"""
PREDICT = """
import dmi
print(dmi.connect().predict("numbers", [[1.0, 2.0, 3.0, 4.0]]).shape)
"""
DMI = "/opt/dmi/bin/dmi-node"


def say(text: str) -> None:
    """A line of the report."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def install(hosts: list[System]) -> None:
    """By the page, word for word, but for who is who."""
    told = commands(PAGE)
    for host in hosts:
        host.run("cp /wheels/dmi-*.whl /root/")
        for line in told["install"]:
            host.run(line)
        host.run("/opt/dmi/bin/pip install --quiet scikit-learn")  # what the example wants beside it
    first, *others = hosts
    for line in told["found"]:
        first.run(line.replace("10.0.0.1", first.address))
    until(lambda: status(first).get("quorum"), 60, "the first host is a mesh")
    for host in others:
        (line,) = told["invite"]
        invitation = first.run(line).splitlines()[0]
        join, *rest = (line.replace("10.0.0.2", host.address) for line in told["join"])
        host.run(f"{join} <<< {invitation}")
        for line in rest:
            host.run(line)
    assert max(len(told["install"]) + len(told[last]) for last in ("found", "join")) <= 6, "more than six commands"
    until(lambda: alive(first) == {host.name for host in hosts}, 60, "all are members")
    until(lambda: sum(m["voter"] for m in status(first)["members"]) == len(hosts), 60, "all vote")


def status(host: System) -> dict:  # type: ignore[type-arg]
    """What its node says; nothing while it says nothing."""
    done = host.try_(f"{DMI} status --json")
    found: dict = json.loads(done.stdout) if done.returncode in {0, 1} and done.stdout else {}  # type: ignore[type-arg]
    return found


def alive(host: System) -> set[str]:
    """Whom it sees."""
    return {member["name"] for member in status(host).get("members", []) if member["state"] == "alive"}


def plain(host: System) -> str:
    """The digest of a plain run."""
    host.put("/root/plain.py", DIGITS)
    host.run("cd /tmp && DMI_EXPORT=/tmp/plain.safetensors /opt/dmi/bin/python /root/plain.py")
    return digest(host, "/tmp/plain.safetensors")


def digest(host: System, path: str) -> str:
    """Its SHA-256."""
    return host.run(f"sha256sum {path}").split()[0]


def submit(host: System, script: str) -> str:
    """A training; gives its id."""
    host.put("/root/job/digits.py", script)
    found: str = json.loads(host.run(f"cd /root/job && {DMI} submit digits.py --json"))["id"]
    return found


def job(host: System, name: str) -> dict:  # type: ignore[type-arg]
    """What is shown of a job."""
    found: dict = next((each for each in status(host).get("jobs", []) if each["id"] == name), {})  # type: ignore[type-arg]
    return found


def ends_as(host: System, name: str, wanted: str) -> None:
    """It succeeds, with the bytes of the plain run."""
    until(lambda: job(host, name).get("state") in {"succeeded", "failed", "cancelled"}, 240, f"{name} ends")
    if job(host, name)["state"] != "succeeded":
        raise RuntimeError(host.run(f"{DMI} why {name}"))
    host.run(f"{DMI} export {name} /tmp/{name}.safetensors")
    found = digest(host, f"/tmp/{name}.safetensors")
    if found != wanted:
        raise RuntimeError(f"{name} has other bytes than a plain run: {found}, not {wanted}")


def reached(host: System, name: str, step: int) -> None:
    """It is in the middle."""
    until(lambda: (job(host, name).get("step") or 0) >= step, 120, f"{name} is at step {step}")


def train(hosts: list[System]) -> None:
    """Undisturbed; with a power cut; with a reboot."""
    first, second, third = hosts
    wanted = plain(first)
    ends_as(second, submit(second, DIGITS), wanted)
    say(f"a training has the plain run's bytes: {wanted[:16]}")
    name = submit(first, SLOWLY + DIGITS)
    reached(first, name, 5)
    third.cut_power()
    say(f"the power of {third.name} is cut in the middle of a training; it boots again in {third.boot():.0f} s")
    ends_as(first, name, wanted)
    until(lambda: alive(first) == {host.name for host in hosts}, 60, f"{third.name} is back")
    say("the training has the plain run's bytes, and the host is a member again")
    name = submit(first, SLOWLY + DIGITS)
    reached(first, name, 5)
    say(f"{second.name} is rebooted in the middle of a training, and is up again in {second.reboot():.0f} s")
    ends_as(first, name, wanted)
    until(lambda: alive(first) == {host.name for host in hosts}, 60, f"{second.name} is back")
    say("the training has the plain run's bytes, and the host is a member again")


def watchdog(hosts: list[System]) -> None:
    """A daemon that stands still is ended, and started again."""
    first, second, _ = hosts
    pid = second.run("systemctl show dmi-node --property MainPID --value").strip()
    second.run(f"kill -STOP {pid}")
    again = until(
        lambda: second.run("systemctl show dmi-node --property MainPID --value").strip() not in {pid, "0"},
        60,
        "the watchdog",
    )
    until(lambda: second.name in alive(first), 60, f"{second.name} is back")
    say(f"a daemon that was stopped was ended by the watchdog, and ran again after {again:.0f} s")


def serve(hosts: list[System]) -> None:
    """A model, with a token."""
    first, second, _ = hosts
    first.put("/root/model.py", MODEL)
    first.put("/root/predict.py", PREDICT)
    second.put("/root/ask.py", ASK)
    first.run("/opt/dmi/bin/python /root/model.py")
    first.run(f"{DMI} models add numbers /root/model.pt2")
    (url, *_) = json.loads(first.run(f"{DMI} serve numbers --replicas 2 --json"))["urls"]
    ask = f"/opt/dmi/bin/python /root/ask.py {url}/v1/models/numbers:predict"
    if (refused := second.run(ask).strip()) != "401":
        raise RuntimeError(f"without a token another host gets {refused}")
    token = first.run(f"{DMI} token add site").strip()
    until(lambda: "predictions" in second.run(f"{ask} {token}"), 60, "another host is answered, with its token")
    if (shape := first.run(f"DMI_TOKEN={token} /opt/dmi/bin/python /root/predict.py").strip()) != "(1, 2)":
        raise RuntimeError(f"mesh.predict gives {shape}")
    say(
        "a model is served: another host is answered with a token, and refused without; mesh.predict finds it in DMI_TOKEN"
    )


def play(hosts: list[System]) -> int:
    """All of it; what the nodes have logged where something does not hold."""
    try:
        say(f"three Debian systems are up after {max([host.boot() for host in hosts]):.0f} s")
        install(hosts)
        say(f"installed as {PAGE.name} says: {', '.join(sorted(alive(hosts[0])))} are members")
        train(hosts)
        watchdog(hosts)
        serve(hosts)
    except RuntimeError as error:
        say(f"failed: {error}")
        for host in hosts:
            say(f"{host.name}: {host.try_('journalctl --unit dmi-node --lines 30 --no-pager').stdout}")
        return 1
    say("all holds")
    return 0


def main() -> int:
    """Exit code 0 when all holds, and where it cannot be tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--room", type=Path, default=ground.ROOT / ".hosts", help="what is kept from run to run")
    room = parser.parse_args().room
    if (reason := ground.why_not()) is not None:
        say(f"skipped: {reason}")
        return 0
    base, wheels = ground.base(room), ground.wheels(room)
    lab = Path(tempfile.mkdtemp(prefix="run-", dir=room))
    try:
        with Bridge(f"dmi{lab.name[-6:]}") as bridge, contextlib.ExitStack() as disks:
            hosts = [
                disks.enter_context(
                    System(f"h{n}", f"10.214.0.{n + 1}", bridge, lab / f"h{n}" / "root", wheels).disk(
                        base, lab / f"h{n}"
                    )
                )
                for n in range(3)
            ]
            return play(hosts)
    finally:
        shutil.rmtree(lab, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

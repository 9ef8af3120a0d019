"""The unit is one that systemd takes, and is hardened; the example configuration is one that a node takes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dmi_node import config
from dmi_node.cli.node import CANNOT_START, TRY_AGAIN
from dmi_node.daemon import CRASHED, DISK_FAILED

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_the_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / "dmi-node.service"
    text = (SYSTEMD / "dmi-node.service").read_text()
    unit.write_text(text.replace("/opt/dmi/bin/dmi-node", shutil.which("true") or ""))
    done = analyze("verify", "--recursive-errors=no", str(unit))
    assert done.returncode == 0, done.stderr
    unit.write_text(unit.read_text().replace("[Service]\n", "[Service]\nNoSuchKey=yes\n"))
    assert "NoSuchKey" in analyze("verify", "--recursive-errors=no", str(unit)).stderr


@needs_systemd
def test_the_unit_is_hardened() -> None:
    done = analyze("security", "--offline=true", "--threshold=30", "--no-pager", str(SYSTEMD / "dmi-node.service"))
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_example_configuration_can_be_read() -> None:
    found = config.read(SYSTEMD / "dmi-node.toml", {}, {})
    assert found.listen == "0.0.0.0:7600"
    assert found.data_ports == (7610, 7699)


def test_a_killed_daemon_is_started_again_however_often() -> None:
    """A kill is a failure; systemd's own limit, five starts in ten seconds, would leave a host out for good."""
    sections = (SYSTEMD / "dmi-node.service").read_text().partition("[Service]")
    assert "StartLimitIntervalSec=0" in sections[0].splitlines(), "it belongs to [Unit]"
    service = dict(line.split("=", 1) for line in sections[2].splitlines() if "=" in line and not line.startswith("#"))
    assert (service["Restart"], service["RestartSec"]) == ("on-failure", "1")
    assert not {CRASHED, DISK_FAILED, TRY_AGAIN} & {int(code) for code in service["RestartPreventExitStatus"].split()}
    arguments = service["ExecStart"].split()
    assert arguments[1:3] == ["run", "--home"], "a home that is a member needs no other flag to rejoin"
    assert service["StateDirectory"] == Path(arguments[3]).name


def test_a_node_may_do_what_shares_and_sockets_need() -> None:
    """These system calls are among those that the line before takes away: the last word counts. (That the unit runs as it is, is
    tried by ``make hosts``.)"""
    lines = (SYSTEMD / "dmi-node.service").read_text().splitlines()
    filters = [line for line in lines if line.startswith("SystemCallFilter")]
    assert filters[-1] == "SystemCallFilter=sched_setaffinity sched_setscheduler setpriority"
    assert "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX" in lines


def test_only_what_would_not_help_is_not_started_again() -> None:
    unit = (SYSTEMD / "dmi-node.service").read_text().splitlines()
    assert "Restart=on-failure" in unit
    assert f"RestartPreventExitStatus={CANNOT_START}" in unit
    assert TRY_AGAIN != CANNOT_START

"""The unit is one that systemd takes, and is hardened; the example configuration is one that a node takes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dmi_node import config
from dmi_node.cli.node import CANNOT_START, TRY_AGAIN

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_the_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / "dmi-node.service"
    text = (SYSTEMD / "dmi-node.service").read_text()
    unit.write_text(text.replace("/usr/local/bin/dmi-node", shutil.which("true") or ""))
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


def test_only_what_would_not_help_is_not_started_again() -> None:
    unit = (SYSTEMD / "dmi-node.service").read_text().splitlines()
    assert "Restart=on-failure" in unit
    assert f"RestartPreventExitStatus={CANNOT_START}" in unit
    assert TRY_AGAIN != CANNOT_START

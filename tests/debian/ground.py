"""What the three systems stand on: Debian's own packages, the wheel of this checkout, and what it needs. Kept from run to run."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.debian.system import do

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "bookworm"
PYTHON = "3.11"
"""What that release has."""
_PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,iproute2,procps"
_MINUTES_S = 1_200.0


def why_not() -> str | None:
    """Why no system can be booted here; None where one can."""
    missing = [name for name in ("debootstrap", "systemd-nspawn", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: debootstrap, systemd-container, iproute2)"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "needs root, on a machine where it may mount"
    if not _mirror():
        return "needs a machine that has Debian's packages"
    return None


def _mirror() -> str:
    """Where this machine has its own packages from."""
    if shutil.which("apt-get") is None:
        return ""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)|$(ORIGIN)|$(LABEL)"],
        capture_output=True,
        text=True,
        check=False,
    )
    sites = [line.split("|")[0] for line in told.stdout.splitlines() if line.endswith("|Debian|Debian")]
    return sites[0] if sites else ""


def base(room: Path) -> Path:
    """A Debian system as it is after its installation, and with what the page's first command asks for."""
    path = room / "base"
    if not (path / "etc/debian_version").exists():
        shutil.rmtree(path, ignore_errors=True)
        do(
            *("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", RELEASE, path, _mirror()),
            seconds=_MINUTES_S,
        )
    do("systemctl", f"--root={path}", "--quiet", "enable", "systemd-networkd")
    return path


def wheels(room: Path) -> Path:
    """The wheel of this checkout, made anew, and all that it needs."""
    path = room / "wheels"
    path.mkdir(parents=True, exist_ok=True)
    for old in path.glob("dmi-*.whl"):
        old.unlink()
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would take what an earlier one left there
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    do(*pip, "wheel", "--no-deps", "--wheel-dir", path, ROOT, seconds=_MINUTES_S)
    (made,) = path.glob("dmi-*.whl")
    there = (
        "--only-binary=:all:",
        "--python-version",
        PYTHON,
        "--constraint",
        ROOT / "constraints.txt",
        "--dest",
        path,
    )
    do(*pip, "download", *there, made, "scikit-learn", seconds=_MINUTES_S)
    return path

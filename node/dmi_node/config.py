"""How a node is set up: one frozen value, read in one place. TOML, then environment, then flags; the later one wins."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dmi_protocol.sizes import in_bytes

_VARIABLES = {
    "name": "DMI_NAME",
    "listen": "DMI_LISTEN",
    "advertise": "DMI_ADVERTISE",
    "log_level": "DMI_LOG_LEVEL",
    "quota": "DMI_QUOTA",
    "cpus": "DMI_CPUS",
    "memory": "DMI_MEMORY",
    "join": "DMI_JOIN",
}


class ConfigError(Exception):
    """The configuration cannot be used. The text names the file or variable, the key and the cause."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set. None means: decide at the first start, and stay with it."""

    name: str | None = None
    """What people call this node; its host's name by default."""
    listen: str | None = None
    """``host:port`` of the mesh port; port 0 takes a free one at the first start."""
    advertise: str | None = None
    """``host:port`` under which the others reach it; what it listens on by default."""
    witness: bool = False
    """Votes, and plays no role."""
    data_ports: tuple[int, int] = (0, 0)
    """First and last port for the data sockets of role processes; (0, 0) takes free ones."""
    quota: str | None = None
    """How much the files of models and jobs may take before no more is taken in, as ``50GB``; all of the disk by default."""
    cpus: int | None = None
    """How many processors jobs may be promised; all that this process may use by default."""
    memory: str | None = None
    """How much memory jobs may be promised, as ``16GB``; all that the host has by default."""
    log_level: str = "info"
    join: str | None = None
    """An invitation, for a home that is no member yet."""


def read(path: Path, environment: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """The configuration in force. Raises ``ConfigError``."""
    values: dict[str, object] = {}
    if path.exists():
        try:
            values |= tomllib.loads(path.read_text())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        _check_keys(path, values)
    values |= {name: environment[variable] for name, variable in _VARIABLES.items() if environment.get(variable)}
    if environment.get("DMI_JOIN") == "":  # somebody meant an invitation: a new home would found a mesh of its own
        values["join"] = ""
    if isinstance(values.get("cpus"), str) and str(values["cpus"]).isdecimal():
        values["cpus"] = int(str(values["cpus"]))
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}, the environment or a flag: {error}") from error
    for name in ("listen", "advertise"):
        if (address := getattr(config, name)) is not None:
            split(address, name)
    for name in ("quota", "memory"):
        if (size := getattr(config, name)) is not None:
            size_of(size, name)
    if config.cpus is not None and config.cpus < 0:
        raise ConfigError(f"cpus must be 0 or more, not {config.cpus}")
    return config


def _check_keys(path: Path, values: Mapping[str, object]) -> None:
    known = [field.name for field in msgspec.structs.fields(Config)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {key!r}; {hint}")


def size_of(text: str, what: str = "quota") -> int:
    """``50GB`` or ``800 MB`` in bytes. Raises ``ConfigError`` that names ``what``."""
    found = in_bytes(text)
    if found is None:
        raise ConfigError(f"{what} must be a size such as 50GB or 800MB, not {text!r}")
    return found


def split(address: str, what: str) -> tuple[str, int]:
    """``host:port`` as two. Raises ``ConfigError`` that names ``what``."""
    host, _, port = address.rpartition(":")
    if ":" in host:
        raise ConfigError(f"{what} is a name or an IPv4 address and a port; IPv6 is not spoken yet: {address!r}")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"{what} must be host:port, not {address!r}")
    return host, int(port)

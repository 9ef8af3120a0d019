"""TOML, then environment, then flags; and what is wrong is named."""

import os
from pathlib import Path

import pytest

from dmi_node import config
from dmi_node.config import ConfigError
from dmi_node.own_capacity import container_cpus, own_capacity
from dmi_protocol.capacity import Capacity


def test_the_later_source_wins(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('name = "file"\nlisten = "127.0.0.1:1"\nlog_level = "debug"\n')
    environment = {"DMI_NAME": "environment", "DMI_LISTEN": "127.0.0.1:2"}
    found = config.read(path, environment, {"listen": "127.0.0.1:3", "name": None})
    assert (found.name, found.listen, found.log_level) == ("environment", "127.0.0.1:3", "debug")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('listn = "127.0.0.1:1"', "did you mean 'listen'"),
        ("nonsense", "cannot be read"),
        ("name = 7", "name"),
        ('listen = "nowhere"', "host:port"),
        ('listen = "[::1]:7600"', "IPv6 is not spoken yet"),
        ('advertise = "::1:7600"', "IPv6 is not spoken yet"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=hint):
        config.read(path, {}, {})


def test_an_empty_invitation_is_one_that_somebody_meant() -> None:
    """A new home would found a mesh of its own."""
    assert config.read(Path("none.toml"), {"DMI_JOIN": ""}, {}).join == ""
    assert config.read(Path("none.toml"), {"DMI_JOIN": ""}, {"join": "dmi-x"}).join == "dmi-x"
    assert config.read(Path("none.toml"), {"DMI_LISTEN": ""}, {}).listen is None


@pytest.mark.parametrize(
    ("text", "size"), [("50GB", 50 * 10**9), ("1.5 TB", 1_500 * 10**9), ("800kb", 800_000), ("7B", 7)]
)
def test_a_quota_is_a_size(text: str, size: int) -> None:
    assert config.size_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "50", "-1GB", "1e9GB", "50 GiB"])
def test_what_is_no_size_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(config.ConfigError, match="quota must be a size"):
        config.read(tmp_path / "none.toml", {}, {"quota": text})


def test_what_jobs_may_be_promised() -> None:
    found = config.read(Path("none.toml"), {"DMI_CPUS": "2", "DMI_MEMORY": "16GB"}, {"memory": "8GB"})
    assert (found.cpus, found.memory) == (2, "8GB")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"memory": "much"}, "memory must be a size"),
        ({"cpus": -1}, "cpus must be 0 or more"),
        ({"cpus": "two"}, "cpus"),
    ],
)
def test_what_is_no_capacity(flags: dict[str, object], said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        config.read(Path("none.toml"), {}, flags)


def test_a_node_promises_what_it_has() -> None:
    assert own_capacity(config.Config(cpus=1, memory="1GB")) == Capacity(1, 10**9)
    usable = len(os.sched_getaffinity(0))
    assert own_capacity(config.Config()).cpus == min(usable, container_cpus() or usable)
    with pytest.raises(config.ConfigError, match=r"cpus is 5000, and this process may use \d+"):
        own_capacity(config.Config(cpus=5000))
    with pytest.raises(config.ConfigError, match=r"memory is 900.0 TB, and this host has "):
        own_capacity(config.Config(memory="900TB"))


def test_what_could_not_be_kept_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    monkeypatch.setattr("dmi_node.own_capacity.memory_of", lambda pid: 0)
    assert own_capacity(config.Config()) == Capacity(0, 0)
    with pytest.raises(config.ConfigError, match=r"cpus is 1, .*sched_setaffinity"):
        own_capacity(config.Config(cpus=1))
    with pytest.raises(config.ConfigError, match=r"memory is 1.0 GB, .*smaps_rollup"):
        own_capacity(config.Config(memory="1GB"))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_promises_the_processors_whose_time_it_has(
    files: dict[str, str], cpus: int | None, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert container_cpus(tmp_path) == cpus

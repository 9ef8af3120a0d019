"""Imports run one way. When this fails, the message says which line and what to do."""

import ast
import sys

import pytest

from tests.architecture.sources import PACKAGES, Import, Source, every_source, imports, sources

MAY_IMPORT = {
    "dmi_protocol": set[str](),
    "dmi_wire": {"dmi_protocol"},
    "dmi_tensor": {"dmi_protocol"},
    "dmi_node": {"dmi_protocol", "dmi_wire", "dmi_tensor"},
    "dmi": {"dmi_protocol", "dmi_wire", "dmi_tensor"},
}
LIBRARIES = {
    "dmi_protocol": {"msgpack", "msgspec"},
    "dmi_wire": {"msgspec", "zmq"},
    "dmi_tensor": {"msgpack", "msgspec", "numpy", "safetensors", "torch"},
    "dmi_node": {"click", "httptools", "msgspec", "numpy", "psutil", "rich", "torch", "uvloop", "zmq"},
    "dmi": {"PIL", "fsspec", "msgpack", "msgspec", "numpy", "pyarrow", "torch", "uvloop", "zmq"},
}
LAZY = {"dmi_tensor", "fsspec", "numpy", "pyarrow", "rich", "torch"}
"""Heavy modules that may be imported inside a function, because most commands do without them."""
IMPURE = {
    "asyncio",
    "datetime",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "secrets",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "threading",
    "time",
    "uuid",
}
"""What the deciding package must never see: time, disks and chance are arguments."""
MACHINES = {"membership", "consensus", "cluster", "training", "jobs"}


def top(module: str) -> str:
    return module.partition(".")[0]


def is_command(found: Import) -> bool:
    return found.source.module.startswith("dmi_node.cli") and top(found.module) == "dmi"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_imported_in_one_direction(package: str) -> None:
    wrong = [
        str(found)
        for source in sources(package)
        for found in imports(source)
        if top(found.module) in PACKAGES
        and top(found.module) != package
        and top(found.module) not in MAY_IMPORT[package]
        and not is_command(found)
    ]
    allowed = ", ".join(sorted(MAY_IMPORT[package])) or "no other package"
    assert not wrong, f"{package} may import {allowed}; move the shared piece down to it: {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_uses_only_the_libraries_it_has_earned(package: str) -> None:
    from_outside = [
        str(found)
        for source in sources(package)
        for found in imports(source)
        if top(found.module) not in {*PACKAGES, *LIBRARIES[package], *sys.stdlib_module_names}
    ]
    assert not from_outside, f"{package} is built on {sorted(LIBRARIES[package])} alone: {from_outside}"


def test_the_protocol_is_pure() -> None:
    wrong = [
        str(found) for source in sources("dmi_protocol") for found in imports(source) if top(found.module) in IMPURE
    ]
    assert not wrong, f"dmi_protocol decides from messages, elapsed time and a seed; move the rest to dmi_node: {wrong}"


def test_the_protocol_takes_chance_as_an_argument() -> None:
    wrong = [
        str(found)
        for source in sources("dmi_protocol")
        for found in imports(source)
        if found.module == "random" and not _imports_only_the_class(found)
    ]
    assert not wrong, f"write `from random import Random` and take a seeded one at construction: {wrong}"


def test_no_import_hides_in_a_function_or_behind_a_type_check() -> None:
    hidden = [
        str(found)
        for source in every_source()
        for found in imports(source)
        if found.nested and top(found.module) not in LAZY and not _may_be_lazy(found)
    ]
    assert not hidden, f"a circle is mended by moving the shared piece down, not by hiding the import: {hidden}"
    guarded = [s.path for s in every_source() if "TYPE_CHECKING" in _names(s)]
    assert not guarded, f"no TYPE_CHECKING guards: {guarded}"


def test_machines_never_import_one_another() -> None:
    wrong = []
    for source in sources("dmi_protocol"):
        mine = source.module.split(".")[1:2]
        for found in imports(source):
            parts = found.module.split(".")
            if top(found.module) != "dmi_protocol" or len(parts) < 2 or not mine or mine[0] not in MACHINES:
                continue
            if parts[1] in MACHINES and parts[1] != mine[0] and not _is_vocabulary(found):
                wrong.append(str(found))
    assert not wrong, f"only peer.py composes machines; let the peer carry the news: {wrong}"


def _is_vocabulary(found: Import) -> bool:
    """The replicated state is data that schedulers read; a command and a leaf tree are words."""
    return found.module in {
        "dmi_protocol.cluster.command",
        "dmi_protocol.cluster.holding",
        "dmi_protocol.cluster.state",
        "dmi_protocol.training.layout",
        "dmi_protocol.training.tree",
    }


def _may_be_lazy(found: Import) -> bool:
    """The command loads each verb's module when it is typed, and the SDK loads torch's side when it is used."""
    return found.source.module in {"dmi"}


def _imports_only_the_class(found: Import) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.lineno == found.line
        and [name.name for name in node.names] == ["Random"]
        for node in ast.walk(found.source.tree)
    )


def _names(source: Source) -> set[str]:
    return {node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)}

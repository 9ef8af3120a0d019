"""A blob is there whole, or not at all."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from dmi.bundle import make
from dmi.errors import UsageError
from dmi_node.storage.blobs import Blobs, WrongHashError
from dmi_node.storage.bundles import BadBundleError, unpack
from dmi_protocol.identity import BlobHash


def test_only_the_right_bytes_are_adopted(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    blobs, file = Blobs(tmp_path / "blobs"), tmp_path / "file"
    name = BlobHash(hashlib.sha256(b"hello").hexdigest())
    file.write_bytes(b"HELLO")
    with pytest.raises(WrongHashError):
        blobs.adopt(file, name)
    assert not blobs.has(name)
    file.write_bytes(b"hello")
    blobs.adopt(file, name)
    assert blobs.read(name, 1, 3) == (5, b"ell")
    blobs.drop(name)
    assert blobs.read(name, 0, 3) == (-1, b"")


def test_a_script_travels_with_what_it_imports(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "train.py").write_text("import near\nfrom pack import inner\nimport json\n")
    (tmp_path / "near.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "pack" / "__init__.py").write_text("from . import side\n")
    (tmp_path / "pack" / "inner.py").write_text("")
    (tmp_path / "pack" / "side.py").write_text("")
    (tmp_path / "data.csv").write_text("1,2\n")
    made = make(tmp_path / "train.py", ["data.csv"])
    assert make(tmp_path / "train.py", ["data.csv"]).hash == made.hash
    (tmp_path / "bundle").write_bytes(made.data)
    unpack(tmp_path / "bundle", tmp_path / "work")
    found = {
        path.relative_to(tmp_path / "work").as_posix() for path in (tmp_path / "work").rglob("*") if path.is_file()
    }
    wanted = {"train.py", "near.py", "deeper.py", "pack/__init__.py", "pack/inner.py", "pack/side.py", "data.csv"}
    assert found == wanted


@pytest.mark.parametrize(("text", "hint"), [("def f(:\n", "line 1"), (None, "no script")])
def test_a_script_that_cannot_be_bundled_is_named(tmp_path: Path, text: str | None, hint: str) -> None:
    if text is not None:
        (tmp_path / "train.py").write_text(text)
    with pytest.raises(UsageError, match=hint):
        make(tmp_path / "train.py")


@pytest.mark.parametrize("name", ["../escape", "link"])
def test_a_hostile_bundle_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member, io.BytesIO())
    (tmp_path / "bundle").write_bytes(buffer.getvalue())
    with pytest.raises(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "inside" / "work")
    assert not list((tmp_path / "inside").glob("escape"))

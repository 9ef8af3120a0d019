"""A blob is there whole, or not at all."""

import contextlib
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


def test_what_was_left_unfinished_is_swept(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    name = BlobHash(hashlib.sha256(b"hello").hexdigest())
    (tmp_path / name).write_bytes(b"hello")
    blobs.incoming(name).write_bytes(b"hel")
    (tmp_path / ".upload-x").write_bytes(b"hel")
    blobs.sweep()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "name", ["", "../node.key_secret", "/etc/passwd", "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n"]
)
def test_a_name_that_is_no_hash_leads_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "node.key_secret").write_text("secret")
    blobs, file = Blobs(tmp_path / "blobs"), tmp_path / "file"
    file.write_bytes(b"hello")
    assert not blobs.has(BlobHash(name))
    blobs.drop(BlobHash(name))
    for use in (blobs.path, blobs.incoming, lambda blob: blobs.read(blob, 0, 9), lambda blob: blobs.adopt(file, blob)):
        with pytest.raises(WrongHashError):
            use(BlobHash(name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["blobs", "file", "node.key_secret"]


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


@pytest.mark.parametrize("headers", [{"path": "a\0b"}, {"mtime": "1e300"}, {"mtime": "nan"}], ids=str)
def test_a_bundle_with_impossible_headers_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("train.py")
        member.size, member.pax_headers = 5, headers
        archive.addfile(member, io.BytesIO(b"pass\n"))
    (tmp_path / "bundle").write_bytes(buffer.getvalue())
    with pytest.raises(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "work")


@pytest.mark.parametrize("data", [b"", b"garbage" * 1000, bytes(512)])
def test_bytes_that_are_no_tar_unpack_to_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bundle").write_bytes(data)
    with contextlib.suppress(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


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

"""A bundle is unpacked as it was made, or refused; and what a job made of it is kept."""

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from dmi.bundle import make
from dmi.errors import UsageError
from dmi_node.storage.bundles import BadBundleError, keep_written, unpack


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


@pytest.mark.parametrize("headers", [{"path": "a\0b"}, {"size": "-1"}], ids=str)
def test_a_bundle_with_impossible_headers_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    (tmp_path / "bundle").write_bytes(_odd_bundle(headers))
    with pytest.raises(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "work")


def test_what_a_script_wrote_is_kept_and_what_it_was_given_is_not(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "train.py").write_text("from pack import inner\n")
    (tmp_path / "pack" / "inner.py").write_text("")
    (tmp_path / "results.csv").write_text("step,loss\n")
    (tmp_path / "bundle").write_bytes(make(tmp_path / "train.py", ["results.csv"]).data)
    work = tmp_path / "work"
    unpack(tmp_path / "bundle", work)
    with (work / "results.csv").open("a") as results:
        results.write("1,0.5\n")
    (work / "pack" / "__pycache__").mkdir()
    (work / "pack" / "__pycache__" / "inner.pyc").write_bytes(b"")
    (work / "out" / "empty").mkdir(parents=True)
    (work / "out" / "model.pt").write_bytes(b"weights")
    keep_written(work)
    assert sorted(p.relative_to(work).as_posix() for p in work.rglob("*")) == ["out", "out/model.pt", "results.csv"]


def test_a_script_that_wrote_nothing_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "bundle").write_bytes(make(tmp_path / "train.py").data)
    unpack(tmp_path / "bundle", tmp_path / "work")
    keep_written(tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("headers", [{"mtime": "1e300"}, {"mtime": "nan"}], ids=str)
def test_times_in_a_bundle_mean_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    (tmp_path / "bundle").write_bytes(_odd_bundle(headers))
    unpack(tmp_path / "bundle", tmp_path / "work")
    assert (tmp_path / "work" / "train.py").stat().st_mtime == 0


def _odd_bundle(headers: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("train.py")
        member.size, member.pax_headers = 5, headers
        archive.addfile(member, io.BytesIO(b"pass\n"))
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"garbage" * 1000, bytes(512)])
def test_bytes_that_are_no_tar_unpack_to_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bundle").write_bytes(data)
    with contextlib.suppress(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("name", ["../escape", "/{0}/escape", "a/../../../escape", "link", ".", "n" * 300])
def test_a_hostile_bundle_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    name = name.format(tmp_path / "inside")
    member = tarfile.TarInfo(name)
    if name == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    (tmp_path / "bundle").write_bytes(_tar(member))
    with pytest.raises(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "inside" / "work")
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "inside", "work"]


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "./a")], ids=str)
def test_two_names_that_cannot_both_be_there_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "bundle").write_bytes(_tar(*map(tarfile.TarInfo, names)))
    with pytest.raises(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "work")


def test_owners_and_modes_in_a_bundle_mean_nothing(tmp_path: Path) -> None:
    member = tarfile.TarInfo("train.py")
    member.mode, member.uid = 0o6777, 4242
    (tmp_path / "bundle").write_bytes(_tar(member))
    unpack(tmp_path / "bundle", tmp_path / "work")
    found = (tmp_path / "work" / "train.py").stat()
    assert (found.st_mode & 0o7777, found.st_uid) == (0o644, os.geteuid())


def test_a_bundle_that_was_cut_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("data.bin")
    member.size = 4_000
    (tmp_path / "bundle").write_bytes(_tar(member, data=bytes(4_000))[:2_000])
    with pytest.raises(BadBundleError):
        unpack(tmp_path / "bundle", tmp_path / "work")


def _tar(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()

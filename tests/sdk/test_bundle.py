"""What travels with a script, found without running it; equal files are equal bytes."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from dmi import bundle
from dmi.errors import UsageError
from dmi_node.storage import bundles
from dmi_protocol import limits


def write(root: Path, **files: str) -> Path:
    """Files by name, ``__`` for ``/`` and without their ``.py``; gives the script ``train.py``."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "train.py"


def names(made: bundle.Bundle) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(made.data)) as archive:
        return archive.getnames()


def test_what_is_imported_beside_the_script_travels_and_nothing_else(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        train="import os, torch\nimport near\nfrom package.inner import thing\ndef f():\n    import late\n",
        near="import far",
        far="",
        late="",
        stranger="",
    )
    write(tmp_path / "package", inner="from . import sibling\nfrom .deep.leaf import x", sibling="", unused="")
    write(tmp_path / "package" / "deep", leaf="from ..cousin import y")
    write(tmp_path / "package", cousin="")
    (tmp_path / "package" / "__init__.py").write_text("")
    assert names(bundle.make(script)) == [
        "far.py",
        "late.py",
        "near.py",
        "package/__init__.py",
        "package/cousin.py",
        "package/deep/leaf.py",
        "package/inner.py",
        "package/sibling.py",
        "train.py",
    ]


def test_a_circle_of_imports_ends(tmp_path: Path) -> None:
    assert names(bundle.make(write(tmp_path, train="import a", a="import b", b="import a"))) == [
        "a.py",
        "b.py",
        "train.py",
    ]


@pytest.mark.parametrize("line", ["from ..outside import x", "from .. import outside", f"from {'.' * 40} import x"])
def test_an_import_above_the_scripts_folder_takes_nothing_along(tmp_path: Path, line: str) -> None:
    write(tmp_path, outside="")
    assert names(bundle.make(write(tmp_path / "job", train=line))) == ["train.py"]


def test_equal_files_have_one_hash_wherever_and_whenever_they_lie(tmp_path: Path) -> None:
    first = write(tmp_path / "one", train="import a", a="x = 1")
    second = write(tmp_path / "two" / "deeper", a="x = 1", train="import a")
    second.chmod(0o755)
    os.utime(second, (0, 0))
    made = bundle.make(first)
    assert bundle.make(second) == made
    write(tmp_path / "one", a="x = 2")
    assert bundle.make(first).hash != made.hash


def test_the_node_unpacks_what_was_packed(tmp_path: Path) -> None:
    script = write(tmp_path / "job", train="import a", a="x = 1")
    (tmp_path / "job" / "data").mkdir()
    (tmp_path / "job" / "data" / "points.bin").write_bytes(bytes(range(256)))
    made = bundle.make(script, ["data"])
    (tmp_path / "blob").write_bytes(made.data)
    bundles.unpack(tmp_path / "blob", tmp_path / "work")
    unpacked = {p.relative_to(tmp_path / "work").as_posix() for p in (tmp_path / "work").rglob("*") if p.is_file()}
    assert unpacked == {"a.py", "data/points.bin", "train.py"}
    assert (tmp_path / "work" / "data" / "points.bin").read_bytes() == bytes(range(256))


def test_included_paths_are_taken_from_the_scripts_folder(tmp_path: Path) -> None:
    script = write(tmp_path, train="")
    (tmp_path / "data" / "__pycache__").mkdir(parents=True)
    (tmp_path / "data" / "__pycache__" / "x.pyc").write_bytes(b"")
    (tmp_path / "data" / "x.csv").write_text("1,2")
    (tmp_path / "one.txt").write_text("1")
    assert names(bundle.make(script, ["data", tmp_path / "one.txt"])) == ["data/x.csv", "one.txt", "train.py"]


@pytest.mark.parametrize(
    ("text", "include", "line"),
    [
        ("def f(:\n", [], "train.py, line 1"),
        ("x = 1\0", [], "train.py"),
        ("", ["nowhere.csv"], "--include nowhere.csv: there is no such file"),
        ("", ["/etc"], "lies outside"),
    ],
)
def test_what_cannot_travel_has_one_line(tmp_path: Path, text: str, include: list[str], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        bundle.make(write(tmp_path, train=text), include)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no script .*gone"):
        bundle.make(tmp_path / "gone.py")


def test_a_job_has_a_size(tmp_path: Path) -> None:
    script = write(tmp_path, train="")
    for name, size in (("few/a.bin", 1_000), ("data/raw/b.bin", limits.BUNDLE_BYTES), ("data/c.bin", 2_000)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(UsageError, match=r"most are in data/raw, data, few"):
        bundle.make(script, ["few", "data"])


def test_a_script_that_is_a_link_travels_from_where_it_lies(tmp_path: Path) -> None:
    write(tmp_path / "src", train_v2="import near", near="")
    (tmp_path / "train.py").symlink_to("src/train_v2.py")
    made = bundle.make(tmp_path / "train.py")
    assert (made.script, names(made)) == ("train_v2.py", ["near.py", "train_v2.py"])


def test_all_of_a_root_travels_but_what_stays_at_home(tmp_path: Path) -> None:
    write(tmp_path / "jobs", train="import pack.inner")
    write(tmp_path / "pack", inner="")
    for name in (".git/config", "own/pyvenv.cfg", "own/lib/x.py", "pack/__pycache__/a.pyc", ".venv/b.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    made = bundle.make(tmp_path / "jobs" / "train.py", root=tmp_path)
    assert made.script == "jobs/train.py"
    assert names(made) == ["jobs/train.py", "notes.txt", "pack/inner.py"]
    assert made.left == (".git", ".venv", "own")


@pytest.mark.parametrize("root", ["elsewhere", "nowhere"])
def test_a_script_lies_in_its_root(tmp_path: Path, root: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match="--root"):
        bundle.make(write(tmp_path, train=""), root=tmp_path / root)


def test_a_notebook_is_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "nb.ipynb").write_text("{}")
    with pytest.raises(UsageError, match="is a notebook: write it as a script"):
        bundle.make(tmp_path / "nb.ipynb")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed.csv").write_text("1")
    (tmp_path / "closed.csv").chmod(0)
    with pytest.raises(UsageError, match=r"closed\.csv cannot be read"):
        bundle.make(write(tmp_path, train=""), ["closed.csv"])


def test_a_job_has_a_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUNDLE_FILES", 2)
    with pytest.raises(UsageError, match="3 files, more than 2"):
        bundle.make(write(tmp_path, train="import a, b", a="", b=""))

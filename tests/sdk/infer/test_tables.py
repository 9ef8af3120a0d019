"""Lines, records, rows and arrays: which of them are inputs, what they are called, and what is wrong with some."""

import errno
import gzip
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dmi.errors import UsageError
from dmi.infer import config
from dmi.infer.inputs import Bad
from dmi.infer.place import Place
from dmi.infer.readers import damage as damage_module
from dmi.infer.readers import jsonl, listing_of, read


def inputs(kind: str, path: Path, start: int = 0, stop: int | None = None, **more: Any) -> list[tuple[Any, Any]]:
    found = config.of({"model": "m", "input": {"kind": kind, "path": str(path), **more}})
    listing = listing_of(found)
    given = read(found, listing, start, listing.total if stop is None else stop)
    return [(each.id, str(each.value) if isinstance(each.value, Bad) else each.value) for each in given]


def test_every_line_that_is_not_blank_is_an_input_and_its_number_its_id(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf[1]", b"", b"[2]\r", b"   ", b'{"a": 1', b"[NaN]", b"\xe4", b'{"a": 1, "a": 2}', b"[3]"]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = inputs("jsonl", tmp_path / "x.jsonl")
    assert [number for number, _ in found] == [1, 3, 5, 6, 7, 8, 9]
    assert found[0] == (1, [1])
    assert found[1] == (3, [2])
    assert str(found[2][1]).startswith("not JSON")
    assert found[4] == (7, "not UTF-8")
    assert found[-2] == (8, "it has 'a' twice")
    assert found[-1] == (9, [3])


def test_reading_begins_anywhere(tmp_path: Path) -> None:
    text = "".join(f"{'' if n % 3 else chr(10)}[{n}]\n" for n in range(1_000))
    (tmp_path / "x.jsonl").write_text(text)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    whole = inputs("jsonl", tmp_path / "x.jsonl")
    assert len(whole) == 1_000
    for start, stop in ((0, 1), (255, 258), (511, 900), (999, 1_000)):
        assert inputs("jsonl", tmp_path / "x.jsonl", start, stop) == whole[start:stop]
        assert inputs("jsonl", tmp_path / "x.jsonl.gz", start, stop) == whole[start:stop]


def test_long_lines_work_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps([0.5] * 300_000)
    (tmp_path / "x.jsonl").write_text(f"[1]\n{long}\n[2]\n")
    assert [len(value) for _, value in inputs("jsonl", tmp_path / "x.jsonl")] == [1, 300_000, 1]
    monkeypatch.setattr(jsonl, "LINE_BYTES", 1_000)
    assert inputs("jsonl", tmp_path / "x.jsonl") == [(1, [1]), (2, "longer than 1000 bytes"), (3, [2])]


def test_a_column_may_be_the_id(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"key": "a", "v": 1}\n{"v": 2}\n')
    assert inputs("jsonl", tmp_path / "x.jsonl", id="key") == [
        ("a", {"v": 1}),
        (2, "it has no 'key', which is input.id"),
    ]


def test_records_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('\ufeffname;a;b\n"x\ny";1;2\n\nz;3\nw;4;five\nv;6;7\n')
    assert inputs("csv", tmp_path / "x.csv", id="name") == [
        ("x\ny", {"a": 1.0, "b": 2.0}),
        (2, "it has 2 fields where the header has 3"),
        ("w", "its 'b' is no number: 'five'"),
        ("v", {"a": 6.0, "b": 7.0}),
    ]
    assert inputs("csv", tmp_path / "x.csv", 3, 4, columns=["b"]) == [(4, {"b": 7.0})]
    for text, words in (("", "is empty"), ("a,a\n1,2\n", "column 'a' twice"), ("a,b\n", "has no inputs")):
        (tmp_path / "y.csv").write_text(text)
        with pytest.raises(UsageError, match=words):
            inputs("csv", tmp_path / "y.csv")
    with pytest.raises(UsageError, match="no column 'c'; it has name, a, b"):
        inputs("csv", tmp_path / "x.csv", id="c")


def rows(path: Path, *numbers: int, groups: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"key": [f"k{n}" for n in numbers], "a": list(numbers), "b": [[n, n] for n in numbers]})
    parquet.write_table(table, path, row_group_size=groups)


def test_a_folder_of_parquet_as_others_leave_it(tmp_path: Path) -> None:
    rows(tmp_path / "part-0.parquet", *range(10))
    rows(tmp_path / "part-1.parquet")
    (tmp_path / "part-3.parquet").touch()
    rows(tmp_path / "date=2024-01-01" / "part.parquet", 10, 11)
    for name in ("_SUCCESS", "_metadata", ".part-0.parquet.crc", ".hidden.parquet", "_more.parquet"):
        (tmp_path / name).write_bytes(b"x")
    found = inputs("parquet", tmp_path)
    assert [name for name, _ in found] == list(range(12))
    assert [value["a"] for _, value in found] == [10, 11, *range(10)], "in the order of the paths"
    assert found[3] == (3, {"a": 1, "b": [1, 1]}), "texts are no numbers"
    for start, stop in ((0, 3), (1, 12), (5, 7), (11, 12)):
        assert inputs("parquet", tmp_path, start, stop) == found[start:stop]
    assert inputs("parquet", tmp_path, 2, 3, id="key", columns=["b"]) == [("k0", {"b": [0, 0]})]


def test_a_damaged_file_of_a_table_is_named(tmp_path: Path) -> None:
    rows(tmp_path / "a.parquet", 1)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-4] + b"PARX")
    with pytest.raises(UsageError, match=r"b\.parquet is damaged or no Parquet file") as caught:
        inputs("parquet", tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no column 'c'"):
        inputs("parquet", tmp_path / "a.parquet", id="c")


def test_an_array_has_an_input_for_each_of_its_first_dimension(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12).reshape(6, 2))
    assert [(name, list(value)) for name, value in inputs("npy", tmp_path / "x.npy", 4, 6)] == [
        (4, [8, 9]),
        (5, [10, 11]),
    ]
    np.save(tmp_path / "one.npy", np.float32(3))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    for name, words in (("one.npy", "holds one number"), ("objects.npy", "holds Python objects")):
        with pytest.raises(UsageError, match=words):
            inputs("npy", tmp_path / name)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "npy", "parquet"])
def test_a_table_at_an_address_is_read_as_one_on_this_host(tmp_path: Path, kind: str) -> None:
    files = fsspec.filesystem("memory")
    values = np.arange(600, dtype=np.float64).reshape(300, 2)
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in values.tolist()))
    (tmp_path / "x.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in values.tolist()))
    np.save(tmp_path / "x.npy", values)
    parquet.write_table(pa.table({"a": values[:, 0], "b": values[:, 1]}), tmp_path / "x.parquet", row_group_size=70)
    try:
        files.pipe(f"/t/x.{kind}", (tmp_path / f"x.{kind}").read_bytes())
        here, there = tmp_path / f"x.{kind}", f"memory://t/x.{kind}"
        for start, stop in ((0, None), (130, 141)):
            found = inputs(kind, there, start, stop)  # type: ignore[arg-type]
            assert [(name, np.array(list(v.values()) if isinstance(v, dict) else v).tolist()) for name, v in found] == [
                (name, np.array(list(v.values()) if isinstance(v, dict) else v).tolist())
                for name, v in inputs(kind, here, start, stop)
            ]
    finally:
        files.rm("/", recursive=True)


def test_an_array_that_cannot_be_read_in_pieces_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.asfortranarray(np.zeros((3, 2))))
    np.save(tmp_path / "cut.npy", np.zeros((300, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    for name, words in (("f.npy", "Fortran order"), ("cut.npy", "is cut short")):
        with pytest.raises(UsageError, match=words):
            inputs("npy", tmp_path / name)


def test_only_columns_that_are_wanted_are_read(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": [1, 2], "b": [3, 4], "n": ["x", "y"]}), tmp_path / "x.parquet")
    assert inputs("parquet", tmp_path / "x.parquet", columns=["b"], id="n") == [("x", {"b": 3}), ("y", {"b": 4})]


def table(path: Path, rows: int, columns: str = "abc", group: int = 5, seed: int = 0) -> Path:
    chance = np.random.default_rng(seed)
    found = pa.table({name: chance.random(rows) for name in columns})
    parquet.write_table(found, path, compression="snappy", use_dictionary=False, row_group_size=group)
    return path


def damage(path: Path, group: int) -> None:
    """A page in the middle of a group of rows; the footer stays good."""
    first = parquet.ParquetFile(path).metadata.row_group(group).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[first + 16 : first + 40] = bytes(24)
    path.write_bytes(data)


def test_rows_of_a_damaged_page_are_bad_ones_and_all_others_are_read(tmp_path: Path) -> None:
    whole = [table(tmp_path / f"{name}.parquet", 20, seed=name) for name in range(3)]
    wanted = inputs("parquet", tmp_path, columns=["a", "b", "c"])
    damage(whole[1], 2)
    found = inputs("parquet", tmp_path, columns=["a", "b", "c"])
    assert [number for number, _ in found] == list(range(60))
    bad = [number for number, value in found if isinstance(value, str)]
    assert bad == list(range(30, 35))
    assert all(value.startswith(f"{whole[1]}: row group 2 cannot be read: ") for n, value in found if n in bad)
    assert [each for each in found if each[0] not in bad] == [each for each in wanted if each[0] not in bad]
    for start, stop in ((0, 7), (28, 33), (31, 32), (34, 60)):
        assert inputs("parquet", tmp_path, start, stop, columns=["a", "b", "c"]) == found[start:stop], (
            "whoever reads it"
        )


def test_a_file_whose_end_was_cut_since_is_bad_as_a_whole(tmp_path: Path) -> None:
    found = config.of({"model": "m", "input": {"kind": "parquet", "path": str(tmp_path)}})
    for name in range(2):
        table(tmp_path / f"{name}.parquet", 10)
    listing = listing_of(found)
    (tmp_path / "0.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-20])
    given = list(read(found, listing, 0, 20))
    assert [isinstance(each.value, Bad) for each in given] == [True] * 10 + [False] * 10
    assert "0.parquet" in str(given[0].value)


@pytest.mark.parametrize("more", [{"columns": ["a", "b"]}, {"columns": ["a"], "id": "b"}])
def test_a_column_that_a_later_file_lacks_is_told_of_its_rows(tmp_path: Path, more: dict[str, Any]) -> None:
    table(tmp_path / "0.parquet", 4, "ab")
    table(tmp_path / "1.parquet", 4, "ac")
    table(tmp_path / "2.parquet", 4, "ba")
    found = inputs("parquet", tmp_path, **more)
    assert [value for _, value in found[4:8]] == [f"{tmp_path / '1.parquet'} has no column 'b'"] * 4
    assert not any(isinstance(value, str) for _, value in found[:4] + found[8:])


def test_a_bad_row_has_its_id_where_that_can_be_read(tmp_path: Path) -> None:
    for name, columns, first in (("0", "ab", 0), ("1", "ba", 20), ("2", "a", 40)):
        found: dict[str, Any] = {column: np.random.default_rng(first).random(20) for column in columns}
        found["key"] = [f"k{number}" for number in range(first, first + 20)]
        parquet.write_table(pa.table(found), tmp_path / f"{name}.parquet", use_dictionary=False, row_group_size=5)
    damage(tmp_path / "1.parquet", 2)
    given = inputs("parquet", tmp_path, columns=["a", "b"], id="key")
    assert [name for name, _ in given] == [f"k{number}" for number in range(60)]
    bad = [place for place, (_, value) in enumerate(given) if isinstance(value, str)]
    assert bad == [*range(30, 35), *range(40, 60)]
    assert inputs("parquet", tmp_path, 33, 43, columns=["a", "b"], id="key") == given[33:43]


def test_a_value_that_python_does_not_have_is_its_row_s_trouble(tmp_path: Path) -> None:
    rows = 5_000
    texts = pa.array([b"\xff\xfe" if row == 4_500 else b"ok" for row in range(rows)], pa.binary())
    names = pa.Array.from_buffers(pa.utf8(), rows, texts.buffers())
    times = pa.array([10**18 if row == 100 else 0 for row in range(rows)], pa.timestamp("us"))
    parquet.write_table(pa.table({"x": list(range(rows)), "name": names, "t": times}), tmp_path / "x.parquet")
    found = inputs("parquet", tmp_path / "x.parquet", columns=["x", "t"])
    assert [(name, value[-50:]) for name, value in found if isinstance(value, str)] == [(100, found[100][1][-50:])]
    assert "row 100 cannot be read" in found[100][1]
    found = inputs("parquet", tmp_path / "x.parquet", columns=["x"], id="name")
    assert {type(value) for _, value in found} == {dict, str}
    assert [name for name, value in found if isinstance(value, str)] == [4_500]
    parquet.write_table(pa.table({"x": list(range(rows)), "name": names}), tmp_path / "x.parquet")
    assert inputs("parquet", tmp_path / "x.parquet")[4_500] == (4_500, {"x": 4_500}), "texts are no inputs"


def test_a_page_with_another_checksum_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    found = pa.table({"a": np.arange(100.0)})
    parquet.write_table(
        found, path, compression="none", use_dictionary=False, row_group_size=50, write_page_checksum=True
    )
    data = bytearray(path.read_bytes())
    at = data.index(np.float64(70.0).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    bad = [number for number, value in inputs("parquet", path) if isinstance(value, str)]
    assert bad == list(range(50, 100))


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "x.jsonl.gz"), ("csv", "x.csv.gz")])
def test_behind_damage_in_what_is_packed_rows_are_bad(tmp_path: Path, kind: str, name: str) -> None:
    lines = [f"{n}.{chance}" for n, chance in enumerate(np.random.default_rng(0).integers(10**9, 10**10, 4_000))]
    text = "\n".join(["v", *lines] if kind == "csv" else lines)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    found = config.of({"model": "m", "input": {"kind": kind, "path": str(tmp_path / name)}})
    listing = listing_of(found)
    whole = list(read(found, listing, 0, listing.total))
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    (tmp_path / name).write_bytes(data)
    given = list(read(found, listing, 0, listing.total))
    assert [each.id for each in given] == [each.id for each in whole]
    first = next(place for place, each in enumerate(given) if isinstance(each.value, Bad) and name in str(each.value))
    assert 0 < first < listing.total
    assert all(isinstance(each.value, Bad) for each in given[first:])
    later = list(read(found, listing, listing.total - 10, listing.total))
    assert [str(each.value) for each in later] == [str(each.value) for each in given[-10:]]


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host may have a better one."""
    path = table(tmp_path / "x.parquet", 20)
    found = config.of({"model": "m", "input": {"kind": "parquet", "path": str(path)}})
    listing = listing_of(found)

    class Failing(io.FileIO):
        def readinto(self, *_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        read = readall = readinto  # type: ignore[assignment]

    monkeypatch.setattr(Place, "open", lambda _: Failing(path))
    with pytest.raises(OSError, match="Input/output error"):
        list(read(found, listing, 0, 20))


def test_what_nobody_can_read_again_is_the_disk_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library has lost the number: the file is read once more."""
    path = table(tmp_path / "x.parquet", 20)
    damage(path, 1)
    assert damage_module.is_damage(OSError("without a number"), Place(str(path)))
    assert not damage_module.is_damage(OSError(errno.EIO, "with one"), Place(str(path)))
    assert not damage_module.is_damage(KeyError("a bug of ours"), Place(str(path)))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        damage_module.is_damage(OSError("without a number"), Place(str(path)))

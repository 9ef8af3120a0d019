"""Inputs that travel are those that are read where they are."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dmi.errors import UsageError
from dmi.infer import carried, config
from dmi.infer.inputs import Bad, Given, Pack
from dmi.infer.readers import listing_of, packed, read


def plain(given: Any) -> list[tuple[Any, str]]:
    return [
        (each.id, repr(each.value.tolist() if isinstance(each.value, np.ndarray) else each.value)) for each in given
    ]


def made(folder: Path, kind: str) -> Path:
    """Twenty inputs, and two bad ones where there can be some."""
    match kind:
        case "images":
            (folder / "in").mkdir()
            for number in range(20):
                Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / "in" / f"{number:03}.png")
            (folder / "in" / "004b.png").write_bytes(b"no picture")
            (folder / "in" / "007b.png").symlink_to("nowhere")
            return folder / "in"
        case "jsonl":
            lines = [f"[{n}, 0.1, null, {10**30}]" for n in range(20)]
            (folder / "x.jsonl").write_text("\n".join([*lines[:5], "{", "[NaN]", *lines[5:]]))
        case "csv":
            (folder / "x.csv").write_text("a,b\n" + "".join(f"{n},{n}.5\n" for n in range(20)) + "1\nx,2\n")
        case "npy":
            np.save(folder / "x.npy", np.arange(44, dtype=np.float16).reshape(22, 2))
        case _:
            when = pa.array([None, *range(21)], pa.timestamp("s", "Europe/Berlin"))
            table = pa.table({"a": np.arange(22), "t": when, "b": [b"\xff"] * 22, "c": [[0.1, 2.0]] * 22})
            parquet.write_table(table, folder / "x.parquet")
    return folder / f"x.{kind}"


@pytest.mark.parametrize("kind", ["images", "jsonl", "csv", "npy", "parquet"])
def test_what_is_packed_is_what_is_read(tmp_path: Path, kind: str) -> None:
    given = config.of({"model": "m", "input": {"kind": kind, "path": str(made(tmp_path, kind)), "travels": True}})
    listing = listing_of(given)
    assert listing.total == 22
    data = b"".join(packed(given, listing, 3, 19))
    assert data == b"".join(packed(given, listing, 3, 19)), "the same bytes each time"
    (tmp_path / "pack").write_bytes(data)
    pack = Pack(str(tmp_path / "pack"), 3)
    for start, stop in ((3, 19), (8, 12), (18, 19)):
        assert plain(read(given, listing, start, stop, (), pack)) == plain(read(given, listing, start, stop))
    skipped = list(read(given, listing, 3, 19, {4}, pack))
    assert skipped[1].value is None
    assert len(skipped) == 16


def test_a_cut_pack_ends_early(tmp_path: Path) -> None:
    given = config.of({"model": "m", "input": {"kind": "jsonl", "path": str(made(tmp_path, "jsonl")), "travels": True}})
    listing = listing_of(given)
    (tmp_path / "pack").write_bytes(b"".join(packed(given, listing, 0, 5)))
    found = list(read(given, listing, 0, 22, (), Pack(str(tmp_path / "pack"), 0)))
    assert [each.id for each in found] == [1, 2, 3, 4, 5]
    assert not any(isinstance(each.value, Bad) for each in found)


def test_what_has_no_form_to_travel_in_is_refused_in_a_line() -> None:
    with pytest.raises(UsageError, match="a value of type object, which cannot be sent: leave its column out"):
        carried.packed([Given(0, {"a": object()})])


def test_whatever_an_input_is_it_comes_back_as_it_was() -> None:
    values: list[Any] = [
        {"a": [1, -(10**30), 2**64 - 1, 0.1, float("inf"), None, True, "\udcff", b"\xff"]},
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.zeros((0, 4), np.float16),
        np.array([(1, 2.0)], dtype=[("n", "<i4"), ("x", "<f8")]),
        None,
        Bad("damaged"),
        [datetime(2026, 11, 26, 1, 2, 3, 4), datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)],  # noqa: DTZ001
        [datetime(2026, 1, 1, tzinfo=UTC), date(2026, 1, 2), time(3, 4), timedelta(-1, 5, 6), Decimal("1.10")],
    ]
    found = carried.unpacked(carried.packed([Given(number, value) for number, value in enumerate(values)]))
    assert [each.id for each in found] == list(range(8))
    assert repr([each.value for each in found]) == repr(values)
    assert found[3].value.dtype.names == ("n", "x")

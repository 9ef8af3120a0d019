"""Results as Parquet: the columns are known before anything is computed."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from dmi.errors import UsageError
from dmi.infer import columns, config
from dmi_protocol.model import TensorInfo

SCORES = (TensorInfo("output_0", "float32", (None, 4), is_batched=True),)
MASKS = (
    TensorInfo("mask", "int64", (None, 2, 3), is_batched=True),
    TensorInfo("width", "float64", (None,), is_batched=True),
    TensorInfo("total", "float32", (), is_batched=False),
)


def of(kind: str = "images", **more: Any) -> config.Config:
    given = {"kind": kind, "path": "in", **more.pop("input", {})}
    return config.of({"model": "m", "input": given, "output": {"kind": "parquet", **more.pop("output", {})}, **more})


def written(tmp_path: Path, given: config.Config, outputs: tuple[TensorInfo, ...], *rows: dict[str, Any]) -> pa.Table:
    (tmp_path / "rows").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    columns.write(tmp_path / "rows", tmp_path / "out.parquet", columns.schema_of(given, outputs))
    return parquet.read_table(tmp_path / "out.parquet")


def test_a_class_and_its_score(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a.png", "category": 3, "score": 0.5},
        {"id": "b\udcff.png", "error": "damaged"},
    ]
    table = written(tmp_path, of(), SCORES, *rows)
    assert table.to_pylist() == [
        {"id": "a.png", "category": 3, "score": 0.5, "error": None},
        {"id": "b\\udcff.png", "category": None, "score": None, "error": "damaged"},
    ]
    labelled = written(tmp_path, of(output={"labels": "l.txt"}), SCORES, {"id": "a", "category": "cat", "score": 0.5})
    assert labelled["category"].to_pylist() == ["cat"]


def test_several_classes(tmp_path: Path) -> None:
    top = [{"category": 1, "score": 0.75}, {"category": 0, "score": 0.25}]
    table = written(tmp_path, of("csv", output={"top": 2}), SCORES, {"id": 7, "top": top})
    assert table.to_pylist() == [{"id": 7, "top": top, "error": None}]


def test_outputs_have_the_types_and_dimensions_of_the_model(tmp_path: Path) -> None:
    outputs = {"mask": [[1, 2, 3], [4, 5, 6]], "width": 0.1}
    table = written(tmp_path, of("npy"), MASKS, {"id": 0, "outputs": outputs})
    assert table.to_pylist() == [{"id": 0, "outputs": outputs, "error": None}]
    assert table.schema.field("outputs").type.field("width").type == pa.float64()
    assert [field.name for field in table.schema.field("outputs").type] == ["mask", "width"]


def test_ids_of_a_column_are_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 12, "category": 0, "score": 1.0}, {"id": "x", "category": 0, "score": 1.0}]
    assert written(tmp_path, of("jsonl", input={"id": "key"}), SCORES, *rows)["id"].to_pylist() == ["12", "x"]


def test_rows_that_may_have_any_columns_are_refused() -> None:
    with pytest.raises(UsageError, match="columns that are known"):
        columns.check(of(postprocess="m:f"))
    with pytest.raises(UsageError, match=r"output\.top needs a model"):
        columns.top_of(of(output={"top": 2}), MASKS)

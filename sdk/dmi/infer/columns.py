"""What a row of the results holds, known before anything is computed; and rows as a Parquet file. Needs no torch."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi_protocol.model import TensorInfo

_ROWS = 16_384
"""Rows that are in memory at a time, and in a row group."""


def given_back(outputs: Sequence[TensorInfo]) -> list[TensorInfo]:
    """Those outputs that have a value for each input."""
    return [info for info in outputs if info.is_batched]


def top_of(config: Config, outputs: Sequence[TensorInfo]) -> int:
    """How many classes a row names; 0 when it has all outputs. Raises ``UsageError`` where there are no classes."""
    found = given_back(outputs)
    are_scores = len(found) == 1 and _are_scores(found[0])
    top = config.output.top if config.output.top is not None else int(are_scores and config.postprocess is None)
    if top and not are_scores:
        raise UsageError(
            "output.top needs a model with one output of scores, [N, classes]; leave it out to get all outputs"
        )
    return top


def _are_scores(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and "float" in info.dtype and (info.shape[1] is None or info.shape[1] > 1)


def check(config: Config) -> None:
    """Can results be written as this host is? Raises ``UsageError``."""
    if config.output.kind == "jsonl":
        return
    if config.postprocess is not None:
        raise UsageError(
            "output.kind parquet needs columns that are known, and postprocess may give any: leave one out"
        )
    _arrow()


def _arrow() -> Any:
    try:
        import pyarrow  # noqa: ICN001 (an optional extra)
        import pyarrow.parquet
    except ImportError as missing:
        raise UsageError(
            "Parquet is written with pyarrow, which is not installed here: pip install 'dmi[infer]'"
        ) from missing
    return pyarrow


def schema_of(config: Config, outputs: Sequence[TensorInfo]) -> Any:
    """The columns: ``id``, what was computed, and ``error``: one of those two is null. Ids of a column that the user names are
    text."""
    pa = _arrow()
    is_text = config.input.kind == "images" or config.input.id is not None
    category = pa.string() if config.output.labels is not None else pa.int64()
    scored = [("category", category), ("score", pa.float64())]
    top = top_of(config, outputs)
    if top == 1:
        computed = scored
    elif top:
        computed = [("top", pa.list_(pa.struct(scored)))]
    else:
        computed = [("outputs", pa.struct([(info.name, _type_of(pa, info)) for info in given_back(outputs)]))]
    return pa.schema([("id", pa.string() if is_text else pa.int64()), *computed, ("error", pa.string())])


def _type_of(pa: Any, info: TensorInfo) -> Any:
    if "float" in info.dtype:
        found = pa.float64() if info.dtype == "float64" else pa.float32()
    else:
        found = pa.bool_() if info.dtype == "bool" else pa.int64()
    for _ in info.shape[1:]:
        found = pa.list_(found)
    return found


def write(source: Path, target: Path, schema: Any) -> None:
    """The JSON lines of ``source`` as Parquet; some rows at a time."""
    pa = _arrow()
    is_text = schema.field("id").type == pa.string()
    with source.open("rb") as file, pa.parquet.ParquetWriter(target, schema) as writer:
        rows = _rows(file, is_text=is_text)
        while found := list(islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(found, schema))


def _rows(file: Iterator[bytes], *, is_text: bool) -> Iterator[dict[str, Any]]:
    for line in file:
        row = json.loads(line)
        if is_text:
            name = row["id"] if isinstance(row["id"], str) else json.dumps(row["id"])
            row["id"] = name.encode("utf-8", "backslashreplace").decode()  # what is no UTF-8 has no place in Parquet
        yield row

"""Rows of Parquet files. Needs pyarrow. Of each file only the row groups that are asked for are read."""

import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Given, Listing
from dmi.infer.place import Place

try:
    from pyarrow import parquet
except ImportError as missing:
    raise UsageError("Parquet is read with pyarrow, which is not installed here: pip install 'dmi[infer]'") from missing

_ROWS = 4_096
"""Rows that are in memory at a time."""
_PIECEWISE: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}
"""Not a whole row group at once."""


def list_inputs(where: Place, config: Config) -> Listing:
    """The files and their rows. A damaged one is refused by name: nobody knows how many inputs it has."""
    files: list[tuple[str, int]] = []
    schema: list[str] = []
    for name in _parquet_files(where):
        each = _file(where, name)
        if each.size() == 0:
            continue
        try:
            with each.open() as opened, parquet.ParquetFile(opened) as file:
                rows, names = file.metadata.num_rows, file.schema_arrow.names
        except Exception as error:  # pyarrow's own, and the disk's
            raise UsageError(f"{each} is damaged or no Parquet file: {str(error).splitlines()[0][:200]}") from error
        if rows:
            files.append((name, rows))
            schema = schema or [*names, *_partitions(name)]
    found = Listing(sum(rows for _, rows in files), files=tuple(files))
    for column in (*([config.input.id] if config.input.id else []), *config.input.columns):
        if files and column not in schema:
            raise UsageError(f"{_file(where, files[0][0])} has no column {column!r}; it has {', '.join(schema)}")
    return found


def _file(where: Place, name: str) -> Place:
    return where.within(name) if name else where


def _parquet_files(where: Place) -> list[str]:
    """Their paths from the folder on; nothing, for a file that stands alone."""
    if not where.is_folder():
        return [""]
    names = [name for name in where.names() if name.endswith(".parquet")]
    return [name for name in names if not any(part.startswith("_") for part in Path(name).parts)]


def _partitions(name: str) -> dict[str, str]:
    """``date=2024-01-01`` in the path of a file is a column of it."""
    return dict(part.split("=", 1) for part in Path(name).parts[:-1] if "=" in part)


def read(where: Place, config: Config, listing: Listing, start: int, stop: int) -> Iterator[Given]:
    """See the package. Of each file only the row groups and the columns that are needed are read, some rows at a time."""
    ends: list[int] = []
    for _, rows in listing.files:
        ends.append(rows + (ends[-1] if ends else 0))
    place = bisect.bisect_right(ends, start)
    while place < len(ends) and (first := ends[place] - listing.files[place][1]) < stop:
        name = listing.files[place][0]
        with _file(where, name).open() as opened, parquet.ParquetFile(opened, **_PIECEWISE) as file:
            yield from _rows(file, _partitions(name), config, first, start, stop)
        place += 1


def _rows(file: Any, partitions: dict[str, str], config: Config, first: int, start: int, stop: int) -> Iterator[Given]:
    wanted = {*config.input.columns, *([config.input.id] if config.input.id else [])}
    columns = [name for name in file.schema_arrow.names if name in wanted] if config.input.columns else None
    number = first
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows > start and number < stop:
            at = number
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns):
                low, high = max(0, start - at), min(len(batch), stop - at)
                if low < high:
                    for offset, row in enumerate(batch.slice(low, high - low).to_pylist()):
                        yield _of_row({**row, **partitions}, at + low + offset, config)
                at += len(batch)
                if at >= stop:
                    return
        number += rows


def _of_row(row: dict[str, Any], number: int, config: Config) -> Given:
    name = row.pop(config.input.id) if config.input.id is not None else number
    wanted = config.input.columns or tuple(c for c, value in row.items() if not isinstance(value, str))
    return Given(name, {column: row[column] for column in wanted})

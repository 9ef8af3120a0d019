"""Rows of Parquet files. Needs pyarrow. Of each file only the row groups that are asked for are read."""

import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Given, Listing

try:
    from pyarrow import parquet
except ImportError as missing:
    raise UsageError("Parquet is read with pyarrow, which is not installed here: pip install 'dmi[infer]'") from missing


def list_inputs(path: Path, config: Config) -> Listing:
    """The files and their rows. A damaged one is refused by name: nobody knows how many inputs it has."""
    files: list[tuple[str, int]] = []
    for each in _parquet_files(path):
        if each.stat().st_size == 0:
            continue
        try:
            rows = parquet.read_metadata(each).num_rows
        except Exception as error:  # pyarrow's own, and the disk's
            raise UsageError(f"{each} is damaged or no Parquet file: {str(error).splitlines()[0][:200]}") from error
        if rows:
            files.append((str(each), rows))
    found = Listing(sum(rows for _, rows in files), files=tuple(files))
    if files:
        names = [*parquet.read_schema(files[0][0]).names, *_partitions(path, Path(files[0][0]))]
        for name in (*([config.input.id] if config.input.id else []), *config.input.columns):
            if name not in names:
                raise UsageError(f"{files[0][0]} has no column {name!r}; it has {', '.join(names)}")
    return found


def _parquet_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [each for each in path.rglob("*.parquet") if each.is_file()]
    return sorted(
        each for each in found if not any(part.startswith((".", "_")) for part in each.relative_to(path).parts)
    )


def _partitions(root: Path, file: Path) -> dict[str, str]:
    """``date=2024-01-01`` in the path of a file is a column of it."""
    parts = file.relative_to(root).parts[:-1] if root.is_dir() else ()
    return dict(part.split("=", 1) for part in parts if "=" in part)


def read(path: Path, config: Config, listing: Listing, start: int, stop: int) -> Iterator[Given]:
    """See the package. Of each file only the row groups that are needed are read, one at a time."""
    ends: list[int] = []
    for _, rows in listing.files:
        ends.append(rows + (ends[-1] if ends else 0))
    place = bisect.bisect_right(ends, start)
    while place < len(ends) and (first := ends[place] - listing.files[place][1]) < stop:
        name = Path(listing.files[place][0])
        with parquet.ParquetFile(name) as file:
            yield from _rows(file, _partitions(path, name), config, first, start, stop)
        place += 1


def _rows(file: Any, partitions: dict[str, str], config: Config, first: int, start: int, stop: int) -> Iterator[Given]:
    number = first
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows > start and number < stop:
            low, high = max(0, start - number), min(rows, stop - number)
            for offset, row in enumerate(file.read_row_group(group).slice(low, high - low).to_pylist()):
                yield _of_row({**row, **partitions}, number + low + offset, config)
        number += rows


def _of_row(row: dict[str, Any], number: int, config: Config) -> Given:
    name = row.pop(config.input.id) if config.input.id is not None else number
    wanted = config.input.columns or tuple(c for c, value in row.items() if not isinstance(value, str))
    return Given(name, {column: row[column] for column in wanted})

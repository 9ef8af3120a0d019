"""Rows of Parquet files. Needs pyarrow. Of each file only the row groups that are asked for are read."""

import bisect
import contextlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Bad, Given, Listing
from dmi.infer.place import Place
from dmi.infer.readers.damage import bad, is_damage

try:
    from pyarrow import parquet, types
except ImportError as missing:
    raise UsageError("Parquet is read with pyarrow, which is not installed here: pip install 'dmi[infer]'") from missing

_ROWS = 4_096
"""Rows that are in memory at a time."""
_NO_VALUE = (ValueError, ArithmeticError, NotImplementedError)
"""What pyarrow raises for a value that Python has none for; its own are among them."""
_READING: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20, "page_checksum_verification": True}
"""Not a whole row group at once; and what a file says of its own bytes holds, where it says it."""


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
    """See the package. Of each file only the row groups and the columns that are needed are read, some rows at a time. A row that
    cannot be read, or that lacks a column, is a bad one, whose line names its file; the others are read."""
    ends: list[int] = []
    for _, rows in listing.files:
        ends.append(rows + (ends[-1] if ends else 0))
    place = bisect.bisect_right(ends, start)
    while place < len(ends) and (first := ends[place] - listing.files[place][1]) < stop:
        name, rows = listing.files[place]
        yield from _of_file(_file(where, name), _partitions(name), config, range(first, first + rows), start, stop)
        place += 1


def _of_file(
    where: Place, partitions: dict[str, str], config: Config, numbers: range, start: int, stop: int
) -> Iterator[Given]:
    try:
        opened = where.open()
    except FileNotFoundError:
        return  # whoever counts the inputs says that they have changed
    with opened:
        try:
            file = parquet.ParquetFile(opened, **_READING)
        except Exception as error:
            if not is_damage(error, where):
                raise
            why = bad(where, error)
            yield from (Given(number, why) for number in range(max(numbers.start, start), min(numbers.stop, stop)))
            return
        with file:
            yield from _rows(file, where, partitions, config, numbers.start, start, stop)


def _rows(
    file: Any, where: Place, partitions: dict[str, str], config: Config, first: int, start: int, stop: int
) -> Iterator[Given]:
    wanted = {*config.input.columns, *([config.input.id] if config.input.id else [])}
    names = file.schema_arrow.names
    lacking = sorted(wanted - {*names, *partitions})
    number = first
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows > start and number < stop:
            ids: list[Any] | None = None
            for at, found in _pieces(file, where, group, _columns(file, config), number, rows):
                for place in range(max(at, start), min(at + len(found), stop)):
                    row = Bad(f"{where} has no column {lacking[0]!r}") if lacking else found[place - at]
                    if isinstance(row, Bad):
                        ids = _ids(file, where, group, partitions, config, number, rows) if ids is None else ids
                        yield Given(ids[place - number], row)
                    else:
                        yield _of_row({**row, **partitions}, place, config)
                if at + len(found) >= stop:
                    return
        number += rows


def _columns(file: Any, config: Config) -> list[str]:
    """Texts are no inputs; where a column is asked for, it is not for its reader to say."""
    is_wanted = {*config.input.columns, config.input.id}.__contains__
    every = not config.input.columns
    return [
        field.name
        for field in file.schema_arrow
        if is_wanted(field.name) or (every and not (types.is_string(field.type) or types.is_large_string(field.type)))
    ]


def _pieces(
    file: Any, where: Place, group: int, columns: list[str], first: int, rows: int
) -> Iterator[tuple[int, Sequence[dict[str, Any] | Bad]]]:
    """Rows of a group, and where each piece of them begins. It is read from its beginning by whoever reads any of it, so that all
    find the same rows unreadable."""
    at, batches = first, file.iter_batches(_ROWS, row_groups=[group], columns=columns)
    while at < first + rows:
        found: Sequence[dict[str, Any] | Bad]
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            if not is_damage(error, where):
                raise
            found = [bad(where, error, what=f"row group {group}")] * (first + rows - at)
        else:
            found = _listed(batch, where, at)
        yield at, found
        at += len(found)


def _listed(batch: Any, where: Place, first: int) -> list[dict[str, Any] | Bad]:
    """Rows as dicts. What Python has no value for (a text that is no UTF-8, a year after 9999) is its row's trouble alone."""
    found: list[dict[str, Any] | Bad] = []
    with contextlib.suppress(*_NO_VALUE):
        found += batch.to_pylist()
    for place in range(len(found), len(batch)):
        try:
            found += batch.slice(place, 1).to_pylist()
        except _NO_VALUE as error:
            found.append(bad(where, error, what=f"row {first + place}"))
    return found


def _ids(
    file: Any, where: Place, group: int, partitions: dict[str, str], config: Config, first: int, rows: int
) -> list[Any]:
    """Of the rows of a group of which something cannot be read: the values of ``input.id`` where those can be, and else their
    numbers."""
    numbers: list[Any] = list(range(first, first + rows))
    name = config.input.id
    if name is None or (name not in partitions and name not in file.schema_arrow.names):
        return numbers
    if name in partitions:
        return [partitions[name]] * rows
    found: list[Any] = []
    try:
        for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[name]):
            found += [None if isinstance(row, Bad) else row[name] for row in _listed(batch, where, first)]
    except Exception as error:
        if not is_damage(error, where):
            raise
    return [number if value is None else value for number, value in zip_longest(numbers, found[:rows])]


def _of_row(row: dict[str, Any], number: int, config: Config) -> Given:
    name = row.pop(config.input.id) if config.input.id is not None else number
    wanted = config.input.columns or tuple(c for c, value in row.items() if not isinstance(value, str))
    return Given(name, {column: row[column] for column in wanted})

"""Records of a CSV file, plain or compressed: separated by commas, semicolons or tabs."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import IO, Any

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Bad, Given, Listing
from dmi.infer.place import Place


def list_inputs(path: Place, config: Config) -> Listing:
    """Every record; a quoted field may have ends of lines in it, so all of it is read once."""
    try:
        dialect = _dialect(path)
        with _text(path) as file:
            rows = csv.reader(file, dialect=dialect)
            header = next(rows, None)
            if header is None:
                raise UsageError(f"{path} is empty")
            twice = next((name for place, name in enumerate(header) if name in header[:place]), None)
            if twice is not None:
                raise UsageError(f"{path} has the column {twice!r} twice")
            for name in (*([config.input.id] if config.input.id else []), *config.input.columns):
                if name not in header:
                    raise UsageError(f"{path} has no column {name!r}; it has {', '.join(header)}")
            return Listing(sum(1 for row in rows if row))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


@contextmanager
def _text(where: Place) -> Iterator[IO[str]]:
    with where.unpacked() as file, TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


def _dialect(path: Place) -> type[csv.Dialect]:
    """Commas, semicolons or tabs: whichever the header has most of."""
    with _text(path) as file:
        header = file.readline()

    class Found(csv.excel):
        delimiter = max(",;\t", key=header.count)

    return Found


def read(path: Place, config: Config, listing: Listing, start: int, stop: int) -> Iterator[Given]:
    """See the package. Records before ``start`` are passed over."""
    dialect = _dialect(path)
    with _text(path) as file:
        rows = csv.reader(file, dialect=dialect)
        header, number = next(rows), 0
        for row in rows:
            if not row:
                continue
            number += 1
            if number > stop:
                return
            if number > start:
                yield _of_record(header, row, number, config)


def _of_record(header: list[str], row: list[str], number: int, config: Config) -> Given:
    if len(row) != len(header):
        return Given(number, Bad(f"it has {len(row)} fields where the header has {len(header)}"))
    fields: dict[str, Any] = dict(zip(header, row, strict=True))
    name: Any = number
    if config.input.id is not None:
        name = fields.pop(config.input.id)
    wanted = config.input.columns or tuple(fields)
    try:
        return Given(name, {column: float(fields[column]) for column in wanted})
    except ValueError:
        odd = next(column for column in wanted if not _is_number(fields[column]))
        return Given(name, Bad(f"its {odd!r} is no number: {fields[odd][:40]!r}"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

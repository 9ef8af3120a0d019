"""JSON lines, plain or compressed. Reading begins near the place that is asked for."""

import json
from collections.abc import Iterator
from typing import IO, Any

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Bad, Given, Listing
from dmi.infer.place import Place

LINE_BYTES = 64 << 20
"""A longer line is an error row."""
_STRIDE = 256
"""The place of every so many-th line is remembered."""


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """(place, line without its end), None for one that is too long."""
    while True:
        place = file.tell()
        line = file.readline(LINE_BYTES + 1)
        if not line:
            return
        if len(line) > LINE_BYTES and not line.endswith(b"\n"):
            while (piece := file.readline(LINE_BYTES)) and not piece.endswith(b"\n"):
                continue
            yield place, None
        else:
            yield place, line.rstrip(b"\r\n")


def list_inputs(path: Place, config: Config) -> Listing:
    """Every line that is not blank; the numbers of lines stand beside places, because ids are line numbers."""
    starts: list[int] = []
    count = number = 0
    try:
        with path.unpacked() as file:
            for place, line in _lines(file):
                number += 1
                if line is not None and not line.strip(b" \t\r\xef\xbb\xbf"):
                    continue
                if count % _STRIDE == 0:
                    starts += [place, number]
                count += 1
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return Listing(count, starts=tuple(starts), stride=_STRIDE)


def read(path: Place, config: Config, listing: Listing, start: int, stop: int) -> Iterator[Given]:
    """See the package."""
    block = start // listing.stride
    place, number = listing.starts[2 * block : 2 * block + 2]
    at, number = block * listing.stride, number - 1
    with path.unpacked() as file:
        file.seek(place)
        for _, line in _lines(file):
            number += 1
            if line is not None and not line.strip(b" \t\r\xef\xbb\xbf"):
                continue
            if at >= start:
                yield _of_line(line, number, config)
            at += 1
            if at >= stop:
                return


def _of_line(line: bytes | None, number: int, config: Config) -> Given:
    if line is None:
        return Given(number, Bad(f"longer than {LINE_BYTES} bytes"))
    try:
        value = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
    except Bad as error:
        return Given(number, error)
    except UnicodeDecodeError:
        return Given(number, Bad("not UTF-8"))
    except (ValueError, RecursionError) as error:
        return Given(number, Bad(f"not JSON: {error}"[:200]))
    if config.input.id is not None and isinstance(value, dict):
        if config.input.id not in value:
            return Given(number, Bad(f"it has no {config.input.id!r}, which is input.id"))
        number = value.pop(config.input.id)
    return Given(number, value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise Bad(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found

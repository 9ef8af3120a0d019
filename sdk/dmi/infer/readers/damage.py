"""Files that can be read, byte by byte, and not be understood: what is damaged in a file is the trouble of its inputs, and what
is wrong with a disk or a network that of a host."""

import zlib
from collections.abc import Callable, Iterator

from dmi.infer.inputs import Bad, Given
from dmi.infer.place import Place, UnreachableError

_PIECE = 1 << 20


def is_damage(error: Exception, where: Place) -> bool:
    """Is the file to blame? A disk says what is wrong with it by its number; where nothing does, the file is read once more, to
    see whether its bytes are there. Raises what reading them raises."""
    if isinstance(error, UnreachableError) or (isinstance(error, OSError) and error.errno is not None):
        return False
    if not isinstance(error, OSError | ValueError | EOFError | zlib.error | ArithmeticError | NotImplementedError):
        return False
    with where.open() as file:
        while file.read(_PIECE):
            continue
    return True


def bad(where: Place, error: Exception, *, what: str = "it") -> Bad:
    """The line of an input that cannot be read, which names the file."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Bad(f"{where}: {what} cannot be read: {said[:160]}")


def told(found: Iterator[Given], where: Place, start: int, stop: int, name: Callable[[int], int]) -> Iterator[Given]:
    """Inputs ``start`` to ``stop`` of one file that is read from front to back; ``name`` gives the id of a place. Behind what
    cannot be read nothing can be."""
    place = start
    while True:
        try:
            given = next(found)
        except StopIteration:
            return
        except Exception as error:
            if not is_damage(error, where):
                raise
            why = bad(where, error)
            break
        yield given
        place += 1
    yield from (Given(name(each), why) for each in range(place, stop))

"""Runs a training script as ``python script.py`` would, and says in plain words how it ended."""

import errno
import os
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType

from msgspec import Struct

from dmi.errors import DmiError
from dmi.run.finish import end_child

CANNOT_START = "cannot-start"
"""The script cannot run on this host, now or later: a syntax error, a missing package."""
RAISED = "script-raised"
DISK = "disk"
"""This host's disk takes nothing: another host may have space."""
EXITED = "script-exited"


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


class Ending(Struct, frozen=True):
    """How a script ended when it did not simply return. ``text`` has one line, or a traceback."""

    kind: str
    text: str


def run_script(script: Path, args: tuple[str, ...]) -> Ending | None:
    """Run ``script`` as ``__main__``; None when it returned, or called ``sys.exit`` with 0 or None.

    ``sys.argv`` and ``sys.path[0]`` are as Python itself sets them. The traceback shows the script's own frames only.
    """
    sys.argv = [str(script), *args]
    sys.path[0] = str(script.parent)
    if script.parent != Path.cwd():  # what lies above it has travelled, too
        sys.path.insert(1, str(Path.cwd()))
    process = os.getpid()
    ending = _run(script)
    if os.getpid() != process:  # a child that was forked came to the script's end, as its parent will
        if ending is not None:
            print(ending.text, file=sys.stderr)
        end_child(0 if ending is None else 1)
    return ending


def _run(script: Path) -> Ending | None:
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        return _ended(ended)
    except SyntaxError as error:
        return Ending(CANNOT_START, "".join(traceback.format_exception_only(error)).rstrip())
    except ModuleNotFoundError as error:
        return Ending(CANNOT_START, f"{_place(error)}the package {error.name!r} is not installed on this host")
    except DmiError as error:
        return Ending(RAISED, f"{_place(error)}{error}")
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            return Ending(DISK, f"{_place(error)}{error}; its host's disk takes nothing")
        return Ending(RAISED, _own_traceback(error))
    except BaseException as error:  # noqa: BLE001 (whatever a script raises is the script's, and is reported as such)
        return Ending(RAISED, _own_traceback(error))
    return None


def _ended(ended: SystemExit) -> Ending | None:
    if ended.code is None or ended.code == 0:
        return None
    if isinstance(ended.code, int):
        return Ending(EXITED, f"the script ended with exit code {ended.code}")
    return Ending(EXITED, str(ended.code))


def _is_ours(filename: str) -> bool:
    """Frames of the runner: this file, and runpy's."""
    return filename in {__file__, runpy.__file__, "<frozen runpy>"}


def _own_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the runner's frames."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None and _is_ours(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame)).rstrip()


def _place(error: BaseException) -> str:
    """Where in the user's own files it happened: ``train.py:12: ``."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not _is_ours(frame.filename) and str(Path(__file__).parents[1]) not in frame.filename
    ]
    mine = [frame for frame in own if "site-packages" not in frame.filename and not frame.filename.startswith("<")]
    return f"{Path(mine[-1].filename).name}:{mine[-1].lineno}: " if mine else ""

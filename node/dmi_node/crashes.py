"""What ended this daemon, by a bug of ours, counted over its lives: what did so twice is set aside in the next one.

The file is for people, too: whoever removes it has everything tried again. So does another version of DMI.
"""

import os
import traceback
from pathlib import Path

import msgspec

from dmi_protocol.blame import TIMES, SetAside, subject_of

_REMEMBERED = 64
_LINE_CHARACTERS = 400


class _Crash(msgspec.Struct, frozen=True):
    times: int
    line: str


class _Record(msgspec.Struct, frozen=True):
    version: str
    crashes: dict[str, _Crash]


class Crashes:
    """Kept in the file at ``path``. A file that cannot be read is as none: it is not worth a refusal to start."""

    def __init__(self, path: Path, version: str) -> None:
        self.path = path
        self._version = version
        self._found = self._read()

    def _read(self) -> dict[str, _Crash]:
        try:
            record = msgspec.json.decode(self.path.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}
        return record.crashes if record.version == self._version else {}

    def set_aside(self) -> SetAside:
        """What is left alone from now on."""
        return SetAside({subject: crash.line for subject, crash in self._found.items() if crash.times >= TIMES})

    def happened(self, error: BaseException) -> None:
        """``error`` ends the daemon now. Nothing is kept of one that would happen at something else the next time."""
        subject = subject_of(error)
        if subject is None:
            return
        line = traceback.format_exception_only(error)[0].strip().splitlines()[-1][:_LINE_CHARACTERS]
        line = line.encode(errors="backslashreplace").decode()  # a name of a file may be no text
        times = self._found.pop(subject, _Crash(0, "")).times + 1
        self._found[subject] = _Crash(times, line)
        kept = dict(list(self._found.items())[-_REMEMBERED:])
        new = self.path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(_Record(self._version, kept)))
        new.replace(self.path)

"""Secrets that are given to a verb. All on this host may read the arguments of a process, its owner alone the environment."""

import contextlib
import getpass
import os
import sys
from pathlib import Path
from typing import NoReturn

from dmi.errors import UsageError
from dmi_node.joining import Invitation, JoinError

VARIABLE = "DMI_JOIN"
_MOST_CHARACTERS = 1 << 16


def given(argument: str | None, path: str | None) -> str | None:
    """The invitation that was given as an argument, or in the file at ``path`` (``-``: standard input); None where it was not.

    One that stands in this process's arguments is moved to its environment, by starting the program again in the same process;
    what is no invitation stays there, and whoever takes it says so. Raises ``UsageError`` for a file that cannot be read.
    """
    if argument is not None and path is not None:
        raise UsageError("one invitation, please: as an argument, or in a file")
    if argument is not None:
        with contextlib.suppress(JoinError):
            Invitation.of_token(argument)
            _hide(argument)
        return argument
    return None if path is None else _read(path)


def _read(path: str) -> str:
    try:
        if path == "-" and sys.stdin.isatty():
            return getpass.getpass("invitation: ").strip()
        if path == "-":
            return sys.stdin.read(_MOST_CHARACTERS).strip()
        with Path(path).open() as file:
            return file.read(_MOST_CHARACTERS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--join-file {path} cannot be read: {error}") from error


def _hide(secret: str) -> None:
    places = [place for place, word in enumerate(sys.orig_argv) if word in {secret, f"--join={secret}"}]
    if not places:
        return
    words = list(sys.orig_argv)
    for place in reversed(places):
        is_value = words[place] == secret and words[place - 1] == "--join"
        del words[place - is_value : place + 1]
    _again(words, secret)


def _again(words: list[str], secret: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *words[1:]], {**os.environ, VARIABLE: secret})  # noqa: S606

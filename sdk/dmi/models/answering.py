"""The frame of a child process that is asked one thing: see ``child.py``."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from dmi_tensor.models import ModelError


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read one JSON object and print one: what ``work`` makes of it, or the error that it raises."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # factories and torch may print, in C too
    torch.set_num_threads(1)  # as a replica has by default
    asked = json.load(sys.stdin)
    try:
        found = work(asked)
    except ModelError as error:
        found = {"error": str(error)}
    with answers:
        json.dump(found, answers)

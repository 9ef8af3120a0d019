"""The workers' ledgers: which leaf of which step each process computed, of how many samples."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One line. ``process`` names the ledger it stands in."""

    process: str
    step: int
    leaf: int
    samples: int


class Account(NamedTuple):
    """``wrong`` has a sentence for everything that cannot be; leaves that two processes computed are only counted."""

    steps: int
    again: int
    wrong: tuple[str, ...]


def read(home: Path, job: str) -> list[Entry]:
    """All ledgers of a job in a mesh under ``home``. A line that a kill has torn is no entry."""
    found = []
    for path in sorted(home.glob(f"n*/jobs/{job}/*/worker-*/ledger.jsonl")):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            found.append(Entry(str(path.relative_to(home)), line["step"], line["leaf"], line["samples"]))
    return found


def account(entries: Iterable[Entry], steps: int, leaves: int) -> Account:
    """Whether every leaf of every step is there, and nobody computed one twice.

    A step may have been computed again, after a fallback or because a worker was lost, by another process: a
    generation of its own, or a survivor. Only one of them is in the sum, which the hash of the weights shows; here each
    must be of the same samples. Each process computes a leaf once.
    """
    sizes: dict[tuple[int, int], set[int]] = defaultdict(set)
    times: Counter[tuple[int, int]] = Counter()
    own: Counter[tuple[str, int, int]] = Counter()
    for entry in entries:
        sizes[entry.step, entry.leaf].add(entry.samples)
        times[entry.step, entry.leaf] += 1
        own[entry.process, entry.step, entry.leaf] += 1
    every = {(step, leaf) for step in range(steps) for leaf in range(leaves)}
    wrong = [f"nobody computed leaf {leaf} of step {step}" for step, leaf in sorted(every - set(sizes))]
    wrong += [f"leaf {leaf} of step {step} is no leaf of the job" for step, leaf in sorted(set(sizes) - every)]
    wrong += [
        f"leaf {at[1]} of step {at[0]} had {sorted(found)} samples" for at, found in sizes.items() if len(found) > 1
    ]
    wrong += [f"{at[0]} has leaf {at[2]} of step {at[1]} {number} times" for at, number in own.items() if number > 1]
    return Account(steps, sum(number - 1 for number in times.values()), tuple(wrong))

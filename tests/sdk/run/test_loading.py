"""Who fetches the samples of a leaf changes nothing, and nobody who fetched is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dmi.errors import UsageError
from dmi.run.begin import init
from dmi.run.loading import Here, Loaders, Request
from dmi.run.plain import PlainExchange
from dmi.run.source import Source
from tests.sdk.run.contents import Backwards, Items, joined, noise


def requests(count: int = 6) -> list[Request]:
    return [Request((step, leaf), (2 * step, leaf), (step, leaf)) for step in range(count) for leaf in range(2)]


def ahead(request: Request) -> Any:
    return (each for each in requests() if each.key >= request.key)


def loaders(item: Callable[[int], Any], workers: int = 1) -> Loaders:
    return Loaders(Source(Items(48, item), 4, workers=workers), 7, ahead)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(mine, its) for mine, its in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_what_would_be_fetched_here(workers: int) -> None:
    here, there = Here(Source(Items(48, noise), 4), 7), loaders(noise, workers)
    wanted = requests()
    del wanted[3], wanted[6]  # leaves that others had after all
    wanted.insert(5, Request((2, 9), (1, 2, 3), (2, 9)))  # and one that was nobody's before
    try:
        assert all(same(there.get(request), here.get(request)) for request in wanted)
    finally:
        there.close()


def test_a_process_that_is_killed_is_replaced() -> None:
    here, there = Here(Source(Items(48, noise), 4), 7), loaders(noise)
    try:
        assert same(there.get(requests()[0]), here.get(requests()[0]))
        for process in there._batches._workers:  # type: ignore[union-attr]
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert all(same(there.get(request), here.get(request)) for request in requests()[1:])
    finally:
        there.close()


@pytest.mark.deep
def test_one_that_always_dies_is_told_in_a_line() -> None:
    parent = os.getpid()

    def dies(place: int) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    there = loaders(dies)
    try:
        with pytest.raises(UsageError, match="a loader process ended 3 times while it fetched the samples of step 0"):
            there.get(requests()[0])
    finally:
        there.close()


def test_what_a_data_set_raises_comes_as_it_is_and_a_refusal_in_its_line() -> None:
    def raises(place: int) -> Any:
        raise LookupError(f"no sample {place}")

    there = loaders(raises)
    with pytest.raises(LookupError, match="no sample 0"):
        there.get(requests()[0])
    there.close()
    ragged = loaders(lambda place: torch.zeros(1 + place % 3))
    with pytest.raises(UsageError, match=r"^samples of Items make no batch"):
        ragged.get(requests()[2])
    ragged.close()


def test_nothing_is_drawn_from_the_script_s_streams() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    there = loaders(noise)
    there._begin(requests()[0])
    found = torch.rand(2)
    there.close()
    assert torch.equal(found, expected)


def train(exchange: PlainExchange, workers: int) -> dict[str, Any]:
    with joined(exchange):
        run = init(seed=0, leaves=4)
        model = run.model(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)))
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in run.epochs(2):
            for step in run.steps(Items(40, noise), batch_size=16, workers=workers):
                for x, y in step:
                    nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                for evaluation in run.evaluate(Items(10, noise), batch_size=8, workers=workers):
                    for x, y in evaluation:
                        run.report(loss=nn.functional.cross_entropy(model(x), y))
                run.state[f"{step.number}"] = run.mean("loss")
        return {**model.state_dict(), "told": torch.tensor(list(run.state.values()))}


def test_a_training_has_the_same_bits() -> None:
    expected = train(PlainExchange(), 0)
    for found in (train(PlainExchange(), 2), train(Backwards(), 1)):
        assert same(found.values(), expected.values())


SLEEPS = """
import os, sys, time, torch, dmi
from torch import nn
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, place):
        if os.getpid() != parent:
            open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
        time.sleep(0.01)
        return torch.zeros(2)
parent = os.getpid()
run = dmi.init()
model = run.model(nn.Linear(2, 1))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
for epoch in run.epochs(1000):
    for step in run.steps(Slow(), batch_size=16, workers=2):
        for x in step:
            model(x).sum().backward()
        optimizer.step()
"""


def test_nobody_is_left_when_the_script_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SLEEPS)
    seen = tmp_path / "seen"
    seen.mkdir()
    process = subprocess.Popen([sys.executable, script, seen])
    try:
        deadline = time.monotonic() + 60
        while len(found := [int(path.name) for path in seen.iterdir()]) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        children = [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]
    finally:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(children, 20)
    assert children
    assert not left


def test_tensors_are_chosen_at_once() -> None:
    source = Source(TensorDataset(torch.arange(8), torch.arange(8) * 2), 4)
    assert same(source.fetch([3, 1]), [torch.tensor([3, 1]), torch.tensor([6, 2])])

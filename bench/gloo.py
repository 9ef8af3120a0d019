"""The peer to compare with: gloo all-reduce in 25 MB buckets, then SGD with momentum on every worker."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

_BUCKET_BYTES = 25 * 1024 * 1024
_FLOAT_BYTES = 4


def measure(rank: int, world: int, store: str, parameters: int, steps: int) -> list[float]:
    """Seconds of each step that is only its exchange; every rank's parameters end equal."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    weights = torch.nn.Parameter(torch.zeros(parameters))
    weights.grad = torch.zeros(parameters)
    gradient = torch.full((parameters,), float(rank + 1))
    optimizer = torch.optim.SGD([weights], lr=0.01, momentum=0.9, fused=True)
    seconds = []
    for _ in range(steps):
        weights.grad.copy_(gradient)
        dist.barrier()
        start = time.perf_counter()
        pending = [
            dist.all_reduce(piece, async_op=True) for piece in torch.split(weights.grad, _BUCKET_BYTES // _FLOAT_BYTES)
        ]
        for work in pending:
            work.wait()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    dist.destroy_process_group()
    return seconds


def main() -> None:
    """One rank: ``python -m bench.gloo RANK WORLD STORE PARAMETERS STEPS OUT``."""
    rank, world, store, parameters, steps, out = sys.argv[1:]
    seconds = measure(int(rank), int(world), store, int(parameters), int(steps))
    Path(out).write_text("\n".join(f"{second:.6f}" for second in seconds))


if __name__ == "__main__":
    main()

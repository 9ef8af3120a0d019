"""The same on Ray Serve with ``@serve.batch``: ``python serving_ray.py NET PORT MAX_BATCH``; prints a line when it is ready.
Needs ``ray[serve]`` beside torch."""

import sys
import time
from typing import Any

import ray
import torch
from ray import serve
from serving_net import SHAPES, make
from starlette.requests import Request

NET, PORT, MAX_BATCH = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Model:
    """One replica."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._net = make(NET)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def compute(self, inputs: list[Any]) -> list[Any]:
        """A batch."""
        with torch.inference_mode():
            found = self._net(torch.tensor(inputs, dtype=torch.float32).reshape(len(inputs), *SHAPES[NET]))
        return found.tolist()  # type: ignore[no-any-return]

    async def __call__(self, request: Request) -> Any:
        """One request."""
        return {"data": await self.compute((await request.json())["data"])}


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Model.bind(), route_prefix="/infer")
    print("ready", flush=True)
    while True:
        time.sleep(1)

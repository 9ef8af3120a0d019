"""What one would write without a serving system: ``python serving_starlette.py NET PORT`` answers with the model in its own
process, on uvicorn and starlette. Needs those two beside torch."""

import sys

import torch
import uvicorn
from serving_net import SHAPES, make
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

torch.set_num_threads(1)
net, shape = make(sys.argv[1]), (1, *SHAPES[sys.argv[1]])


async def infer(request: Request) -> JSONResponse:
    """One input, and its outputs."""
    data = (await request.json())["data"]
    with torch.inference_mode():
        found = net(torch.tensor(data, dtype=torch.float32).reshape(shape))
    return JSONResponse({"data": found[0].tolist()})


app = Starlette(routes=[Route("/infer", infer, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", loop="uvloop", http="httptools")

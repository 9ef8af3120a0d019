"""``python kserve_client.py URL MODEL``: kserve's client asks a gateway, in an environment that has kserve. Prints ``fine``."""

import asyncio
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

VALUES = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], np.float32)
EXPECTED = [[141.0, 162.0], [71.0, 92.0]]


async def by_v2(url: str, model: str) -> None:
    """JSON and binary, and a refusal."""
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, model)
        for is_binary in (False, True):
            given = InferInput("x", list(VALUES.shape), "FP32")
            given.set_data_from_numpy(VALUES, binary_data=is_binary)
            found = await client.infer(url, InferRequest(model, [given], request_id="7"), model_name=model)
            assert found.outputs[0].as_numpy().reshape(2, 2).tolist() == EXPECTED, found
            assert found.id == "7"
        wrong = InferInput("x", [1, 5], "FP32")
        wrong.set_data_from_numpy(VALUES[:1, :5].copy(), binary_data=False)
        said = ""
        try:
            await client.infer(url, InferRequest(model, [wrong]), model_name=model)
        except httpx.HTTPStatusError as error:
            said = f"{error.response.status_code} {error.response.text}"
        assert said.startswith("400"), said
        assert "inputs[0].shape" in said


async def by_v1(url: str, model: str) -> None:
    """Instances in, predictions out."""
    async with InferenceRESTClient(RESTConfig(protocol="v1", retries=0)) as client:
        assert await client.is_server_live(url)
        assert await client.is_model_ready(url, model)
        found = await client.infer(url, {"instances": VALUES.tolist()}, model_name=model)
        assert found["predictions"] == EXPECTED, found


async def main() -> None:
    """Both."""
    _, url, model = sys.argv
    await by_v2(url, model)
    await by_v1(url, model)
    print("fine")


asyncio.run(main())

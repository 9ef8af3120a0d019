"""What a gateway answers: the protocol, and requests as strangers write them (the field is named)."""

import asyncio
import gzip
import hashlib
import json
import random
import struct
from typing import Any

import numpy as np
import pytest

from dmi_node.gateway.access import is_open
from dmi_node.gateway.v2 import JSON_LENGTH
from dmi_protocol.messages.roles import Access
from dmi_protocol.model import TensorInfo
from dmi_protocol.serving.events import Full, Killed, Rejected, TooLate
from tests.node.gateway.served import Served, answer, content, head, serving, until

X = TensorInfo("x", "float32", (None, 3))
MODEL = content(X)
INFER = "/v2/models/net/infer"
LENGTH = JSON_LENGTH.decode()


async def ask(
    served: Served, method: str, path: str, body: bytes = b"", **headers: Any
) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await served.connect()
    writer.write(head(method, path, len(body) if body or method == "POST" else None, **headers) + body)
    found = await answer(reader)
    writer.close()
    return found


async def get(served: Served, path: str) -> tuple[int, Any]:
    status, _, body = await ask(served, "GET", path)
    return status, json.loads(body)


async def post(served: Served, value: Any, path: str = INFER, said: Any = None, **headers: Any) -> tuple[int, Any]:
    headers |= {} if said is None else {LENGTH.replace("-", "_"): said}
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    status, _, found = await ask(served, "POST", path, body, **headers)
    return status, json.loads(found)


def tensor(
    data: Any = (1, 2, 3), shape: Any = (1, 3), datatype: str = "FP32", name: Any = "x", **more: Any
) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data} | more


async def test_what_it_says_of_itself() -> None:
    async with serving(MODEL) as served:
        assert (await get(served, "/v2"))[1]["name"] == "dmi"
        assert (await get(served, "/"))[1]["status"] == "alive"
        assert await get(served, "/v2/health/live") == (200, {"live": True})
        assert await get(served, "/v2/health/ready") == (200, {"ready": True})
        assert await get(served, "/v2/models/net/ready") == (200, {"name": "net", "ready": True})
        status, known = await get(served, "/v2/models/net/versions/3")
        assert (status, known["versions"]) == (200, ["3"])
        assert known["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        assert known["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
        _, config = await get(served, "/v2/models/net/config")
        assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [3])
        assert config["input"][0]["data_type"] == "TYPE_FP32"
        assert await post(served, {}, "/v2/repository/index") == (
            200,
            [{"name": "net", "version": "3", "state": "READY", "reason": ""}],
        )
        assert await post(served, {}, "/v2/repository/models/net/load") == (200, {})
        assert (await get(served, "/openapi.json"))[1]["openapi"].startswith("3.")
        assert (await ask(served, "GET", "/docs"))[1]["content-type"].startswith("text/html")


async def test_it_is_not_ready_without_a_replica_or_when_it_leaves() -> None:
    async with serving(MODEL) as served:
        served.app.is_leaving = True
        assert await get(served, "/v2/health/ready") == (503, {"ready": False})
        served.app.is_leaving, served.replicas.able = False, 0
        assert (await get(served, "/v2/models/net/ready"))[0] == 503
        assert await get(served, "/v2/health/live") == (200, {"live": True})


async def test_json_in_and_json_out() -> None:
    async with serving(MODEL) as served:
        status, found = await post(
            served, {"id": "a", "inputs": [tensor([[1, 2, 3], [4, 5, 6]], [2, 3])], "outputs": [{"name": "y"}]}
        )
        assert status == 200
        assert found == {
            "model_name": "net",
            "model_version": "3",
            "id": "a",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [6, 0, 15, 0]}],
        }


async def test_bytes_in_and_bytes_out() -> None:
    async with serving(MODEL) as served:
        data = np.array([[1, 2, 3]], np.float32).tobytes()
        asked = tensor(name="x", shape=[1, 3]) | {"parameters": {"binary_data_size": 12}}
        del asked["data"]
        text = json.dumps({"inputs": [asked], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
        packed = gzip.compress(text + data)
        for body, more in ((text + data, {}), (packed, {"Content_Encoding": "gzip"})):
            headers = {LENGTH.replace("-", "_"): len(text)} | more
            status, said, found = await ask(served, "POST", INFER, body, **headers)
            length = int(said[LENGTH.lower()])
            assert (status, said["content-type"]) == (200, "application/octet-stream")
            (output,) = json.loads(found[:length])["outputs"]
            assert output["parameters"] == {"binary_data_size": 8}
            assert np.frombuffer(found[length:], np.float32).tolist() == [6, 0]


async def test_binary_is_said_for_all_outputs_or_for_each() -> None:
    model = content(X, outputs=(TensorInfo("y", "float32", (None, 1)), TensorInfo("z", "int64", (None, 1))))
    async with serving(model) as served:
        every = {"inputs": [tensor()], "parameters": {"binary_data_output": True}}
        _, said, found = await ask(served, "POST", INFER, json.dumps(every).encode())
        assert len(found) - int(said[LENGTH.lower()]) == 4 + 8
        one = every | {"outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": False}}]}
        _, said, found = await ask(served, "POST", INFER, json.dumps(one).encode())
        outputs = json.loads(found[: int(said[LENGTH.lower()])])["outputs"]
        assert ["data" in output for output in outputs] == [True, False]


@pytest.mark.parametrize(
    ("dtype", "datatype", "data", "stored"),
    [
        ("bool", "BOOL", [True, False], b"\x01\x00"),
        ("uint8", "UINT8", [0, 255], b"\x00\xff"),
        ("int8", "INT8", [-128, 127], b"\x80\x7f"),
        ("int16", "INT16", [-1, 2], struct.pack("<2h", -1, 2)),
        ("uint32", "UINT32", [1, 2**32 - 1], struct.pack("<2I", 1, 2**32 - 1)),
        ("int64", "INT64", [-(2**63), 2**63 - 1], struct.pack("<2q", -(2**63), 2**63 - 1)),
        ("uint64", "UINT64", [1, 2**63], struct.pack("<2Q", 1, 2**63)),
        ("float16", "FP16", [1, -2.5], np.array([1, -2.5], np.float16).tobytes()),
        ("bfloat16", "BF16", [1, -2.5], b"\x80\x3f\x20\xc0"),
        ("float64", "FP64", [0.1, 3], struct.pack("<2d", 0.1, 3)),
    ],
)
async def test_every_datatype(dtype: str, datatype: str, data: list[Any], stored: bytes) -> None:
    shape = (None, 2)
    async with serving(content(TensorInfo("x", dtype, shape), outputs=(TensorInfo("y", dtype, shape),))) as served:
        status, found = await post(served, {"inputs": [tensor(data, [1, 2], datatype)]})
        assert (status, found["outputs"][0]["datatype"]) == (200, datatype)
        assert served.replicas.asked[0].tensors[0].data == stored
        asked = tensor(None, [1, 2], datatype) | {"parameters": {"binary_data_size": len(stored)}}
        del asked["data"]
        text = json.dumps({"inputs": [asked]}).encode()
        status, _, _ = await ask(served, "POST", INFER, text + stored, **{LENGTH.replace("-", "_"): len(text)})
        assert status == 200
        assert bytes(served.replicas.asked[1].tensors[0].data) == stored


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    import torch

    from dmi_node.gateway.tensors import from_json

    values = [*np.random.default_rng(0).normal(size=500).tolist(), 1e-40, 3.4e38, 0.0, -0.0, 1.00390625, 1.01171875]
    expected = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16).view(torch.uint16).numpy().tobytes()
    assert from_json("BF16", [len(values)], values, "data") == expected


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"inputs": NaN}', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        ({}, "inputs:"),
        ({"inputs": {}}, "inputs:"),
        ({"inputs": [7]}, "inputs[0]:"),
        ({"inputs": [tensor(name=7)]}, "inputs[0].name"),
        ({"inputs": [tensor(name="z")]}, "inputs[0].name: the model has no input 'z'"),
        ({"inputs": [tensor(), tensor()]}, "given twice"),
        ({"inputs": []}, "'x' is missing"),
        ({"inputs": [tensor(datatype="FLOAT")]}, "inputs[0].datatype"),
        ({"inputs": [tensor(datatype="INT32")]}, "inputs[0].datatype: INT32; the input 'x' is FP32"),
        ({"inputs": [tensor(["a", "b", "c"], datatype="BYTES")]}, "inputs[0].datatype: BYTES"),
        ({"inputs": [tensor(["a", 1, "c"], datatype="BYTES")]}, "inputs[0].data: BYTES takes strings"),
        ({"inputs": [tensor(shape="-1")]}, "inputs[0].shape"),
        ({"inputs": [tensor(shape=[-1, 3])]}, "inputs[0].shape"),
        ({"inputs": [tensor(shape=[1.0, 3])]}, "inputs[0].shape"),
        ({"inputs": [tensor(shape=[True, 3])]}, "inputs[0].shape"),
        ({"inputs": [tensor(shape=[2**40, 2**40])]}, "inputs[0].data"),
        ({"inputs": [tensor(shape=[1] * 1_000)]}, "inputs[0].shape"),
        ({"inputs": [tensor(shape=[3])]}, "inputs[0].shape: [3]; the input 'x' is [-1, 3]"),
        ({"inputs": [tensor(data=[1, 2])]}, "inputs[0].data: 2 elements"),
        ({"inputs": [tensor(data=[[1], [2], [3]])]}, "inputs[0].data: the lists are of shape [3, 1]"),
        ({"inputs": [tensor(data=[[1, 2], [3]])]}, "inputs[0].data"),
        ({"inputs": [tensor(data=["1", "2", "3"])]}, "inputs[0].data: FP32 takes numbers"),
        ({"inputs": [tensor(data=[True, False, True])]}, "inputs[0].data: FP32 takes numbers"),
        ({"inputs": [tensor(data=[1, None, 3])]}, "inputs[0].data: FP32 takes numbers"),
        ({"inputs": [tensor(data=7)]}, "inputs[0].data: a list"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}]}, "inputs[0].data: it is missing"),
        ({"inputs": [tensor(parameters=[])]}, "inputs[0].parameters"),
        ({"inputs": [tensor(parameters={"shared_memory_region": "r"})]}, "shared_memory_region"),
        ({"inputs": [tensor(parameters={"binary_data_size": 12})]}, "binary_data_size"),
        ({"inputs": [tensor()], "id": 7}, "id:"),
        ({"inputs": [tensor()], "outputs": [{"name": "q"}]}, "outputs[0].name: 'q'"),
        ({"inputs": [tensor()], "outputs": 7}, "outputs:"),
        ({"inputs": [tensor()], "parameters": {"sequence_id": 9}}, "parameters.sequence_id"),
        ({"inputs": [tensor()], "parameters": {"timeout": "1s"}}, "parameters.timeout"),
        ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({"inputs": [tensor()] * 1_000}, "inputs:"),
    ],
)
async def test_what_is_wrong_is_named(body: Any, field: str) -> None:
    async with serving(MODEL) as served:
        status, found = await asyncio.wait_for(post(served, body), 1)
        assert status == 400
        assert field in found["error"], found
        assert (await post(served, {"inputs": [tensor()]}))[0] == 200


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT8", [1, 2, 128]),
        ("UINT8", [-1, 2, 3]),
        ("INT64", [1, 2, 2**63]),
        ("INT32", [1.5, 2, 3]),
        ("BOOL", [0, 1, 1]),
    ],
)
async def test_numbers_that_do_not_fit_are_refused_and_never_cut(datatype: str, data: list[Any]) -> None:
    dtype = {"INT8": "int8", "UINT8": "uint8", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}[datatype]
    async with serving(content(TensorInfo("x", dtype, (None, 3)))) as served:
        status, found = await post(served, {"inputs": [tensor(data, datatype=datatype)]})
        assert (status, "inputs[0].data" in found["error"]) == (400, True)


@pytest.mark.parametrize(
    ("length", "size", "field"),
    [
        (0, 12, "no JSON"),
        (-1, 12, LENGTH),
        ("x", 12, LENGTH),
        (10**9, 12, LENGTH),
        (None, 11, "11 bytes, where FP32"),
        (None, 13, "of 12 bytes that are left"),
        (None, 10**12, "of 12 bytes that are left"),
        (None, -1, "binary_data_size"),
        (None, "12", "binary_data_size"),
        (None, 8, "8 bytes, where"),
    ],
)
async def test_binary_sizes_that_are_wrong_are_named(length: Any, size: Any, field: str) -> None:
    async with serving(MODEL) as served:
        asked = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": size}}
        text = json.dumps({"id": "ü", "inputs": [asked]}, ensure_ascii=False).encode()
        said = len(text) if length is None else length
        status, found = await post(served, text + bytes(12), said=said)
        assert (status, field in found["error"]) == (400, True), found


async def test_bytes_after_the_last_tensor_are_refused() -> None:
    async with serving(MODEL) as served:
        text = json.dumps({"inputs": [tensor()]}).encode()
        status, found = await post(served, text + b"more", said=len(text))
        assert (status, "4 bytes" in found["error"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", INFER, 405),
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/net/versions/9", 404),
        ("GET", "/v2/models/a%2Fb", 404),
        ("GET", "/v2/models/../net", 404),
        ("GET", "/v2/models/%ff", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/net/versions/1/infer", 404),
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v2/repository/models/net/unload", 400),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/models/net/nothing", 404),
    ],
)
async def test_what_is_not_here(method: str, path: str, status: int) -> None:
    async with serving(MODEL) as served:
        found = await ask(served, method, path, b"")
        assert found[0] == status
        assert json.loads(found[2])["error"]


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.deep)])
async def test_bodies_that_are_broken_somewhere(count: int) -> None:
    """Each is answered, and a good one beside them too."""
    chance = random.Random(count)
    good = json.dumps({"inputs": [tensor()], "outputs": [{"name": "y"}], "parameters": {"timeout": 5}}).encode()
    async with serving(MODEL) as served:
        reader, writer = await served.connect()
        statuses = set[int]()
        for nth in range(count):
            body = bytearray(good)
            for _ in range(chance.choice([1, 1, 2, 5])):
                place = chance.randrange(len(body))
                what = chance.random()
                if what < 0.4:
                    body[place] = chance.randrange(256)
                elif what < 0.7:
                    del body[place : place + chance.choice([1, 1, 5, 40])]
                else:
                    body[place:place] = chance.choice([b"[", b"]", b"-", b"9" * 30, b'"', b"null", b"\xff", b"{}"])
            writer.write(head("POST", INFER, len(body)) + bytes(body))
            statuses.add((await answer(reader))[0])
            if nth % 500 == 0:
                assert (await post(served, good))[0] == 200
        writer.close()
        assert statuses <= {200, 400}
        assert 400 in statuses


async def test_predict_takes_plain_values() -> None:
    async with serving(MODEL) as served:
        path = "/v1/models/net:predict"
        assert await post(served, {"instances": [[1, 2, 3], [4, 5, 6]]}, path) == (
            200,
            {"predictions": [[6, 0], [15, 0]], "model_version": "3"},
        )
        assert (await post(served, {"instances": [{"x": [1, 2, 3]}]}, path))[0] == 200
        for body, field in (
            ({}, "instances"),
            ({"instances": []}, "instances"),
            ({"instances": [[1, 2], [3]]}, "equal shapes"),
            ({"instances": [[1, 2]]}, "instances.shape"),
            ({"instances": [{"z": 1}]}, "instances[0]: 'x' is missing"),
            ({"instances": [["a", "b", "c"]]}, "takes numbers"),
            ({"instances": [[[[1]]]]}, "instances"),
        ):
            status, found = await post(served, body, path)
            assert (status, field in found["error"]) == (400, True), found


async def test_two_inputs_of_unequal_lengths_are_refused() -> None:
    async with serving(content(X, TensorInfo("z", "float32", (None,)))) as served:
        status, found = await post(served, {"inputs": [tensor(), tensor([1, 2], [2], name="z")]})
        assert (status, "inputs[1].shape" in found["error"]) == (400, True)


@pytest.mark.parametrize(
    ("why", "status"),
    [
        (Rejected("IndexError: 7"), 400),
        (Full(), 429),
        (Killed(2), 500),
        (TooLate(has_replica=True), 504),
        (TooLate(has_replica=False), 503),
    ],
)
async def test_what_has_no_answer_has_a_reason(why: Any, status: int) -> None:
    async with serving(MODEL) as served:
        served.replicas.refusal = why
        found, headers, body = await ask(served, "POST", INFER, json.dumps({"inputs": [tensor()]}).encode())
        assert found == status
        assert ("retry-after" in headers) == (status in {429, 503})
        assert json.loads(body)["error"]
        counted = served.statistics.served(0.0)
        assert (counted.requests, counted.failed) == (1, int(status != 400))


async def test_how_long_it_may_take() -> None:
    async with serving(MODEL) as served:
        body = {"inputs": [tensor()]}
        await post(served, body)
        await post(served, body, Timeout="2.5")
        await post(served, body | {"parameters": {"timeout": 1_500_000}}, Timeout="2.5")
        assert served.replicas.within_ms == [30_000, 2_500, 1_500]
        assert (await post(served, body, Timeout="soon"))[0] == 400


async def test_who_hangs_up_is_not_computed_for() -> None:
    async with serving(MODEL) as served:
        served.replicas.is_held = True
        _, writer = await served.connect()
        body = json.dumps({"inputs": [tensor()]}).encode()
        writer.write(head("POST", INFER, len(body)) + body)
        await until(lambda: served.replicas.asked)
        writer.close()
        await until(lambda: served.replicas.abandoned == [1])


async def test_what_is_counted() -> None:
    async with serving(MODEL) as served:
        for _ in range(3):
            await post(served, {"inputs": [tensor([1] * 6, [2, 3])]})
        await post(served, {})
        _, found = await get(served, "/v2/models/net/stats")
        (mine,) = found["model_stats"]
        assert (mine["inference_count"], mine["inference_stats"]["success"]["count"]) == (6, 3)
        assert mine["inference_stats"]["fail"]["count"] == 1
        _, headers, body = await ask(served, "GET", "/metrics")
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b'dmi_requests_total{model="net",code="200"} 3' in body
        assert b'dmi_request_seconds_bucket{model="net",le="+Inf"} 3' in body


async def test_where_not_everybody_may_ask_a_token_is_wanted() -> None:
    async with serving(MODEL) as served:
        digests = [hashlib.sha256(b"dmi_secret").hexdigest()]
        served.app.access = lambda: Access(tuple(digests))
        body = {"inputs": [tensor()]}
        for said in (
            {},
            {"Authorization": "Bearer dmi_other"},
            {"Authorization": "Basic eDp5"},
            {"Authorization": "Bearer "},
        ):
            status, headers, _ = await ask(served, "POST", INFER, json.dumps(body).encode(), **said)
            assert (status, headers["www-authenticate"]) == (401, "bearer")
        assert (await post(served, body, Authorization="Bearer dmi_secret"))[0] == 200
        assert (await post(served, body, Authorization="bearer dmi_secret"))[0] == 200
        assert (await get(served, "/v2/health/ready"))[0] == 200
        assert (await ask(served, "GET", "/metrics"))[0] == 401
        digests.clear()
        assert (await post(served, body, Authorization="Bearer dmi_secret"))[0] == 401, "it was taken back"


@pytest.mark.parametrize(
    ("host", "is_it"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("10.0.0.1", False), ("0.0.0.0", False), ("x.y", False)],
)
def test_only_loopback_is_open(host: str, *, is_it: bool) -> None:
    assert is_open(host) is is_it


async def test_a_request_of_empty_rows_has_a_bound() -> None:
    """A body of 90 bytes may name forty million of them."""
    free = content(TensorInfo("x", "int64", (None, None)), outputs=(TensorInfo("y", "float32", (None, 4)),))
    async with serving(free) as served:
        status, found = await post(served, {"inputs": [tensor([], [40_000_000, 0], "INT64")]})
        assert (status, served.replicas.asked) == (400, [])
        assert "inputs[0].shape: a request has at most 1048576 inputs" in found["error"]

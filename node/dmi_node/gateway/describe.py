"""The OpenAPI document of a gateway."""

from importlib.metadata import version
from typing import Any

from dmi_node.gateway.contract import Contract, shown
from dmi_node.gateway.tensors import BYTES, DTYPES
from dmi_protocol.model import TensorInfo
from dmi_protocol.serving.datatypes import DATATYPES


def document(model: str, contract: Contract) -> dict[str, Any]:
    """OpenAPI 3.1, of the addresses that there are for this model."""
    base = f"/v2/models/{model}"
    paths = {
        "/v2": _get("What this server is"),
        "/v2/health/live": _get("Does it live?"),
        "/v2/health/ready": _get("Could it compute something now?", "503"),
        base: _get("What the model takes and gives"),
        f"{base}/ready": _get("Could it compute something now?", "503"),
        f"{base}/config": _get("How it is served"),
        f"{base}/stats": _get("What was computed so far"),
        f"{base}/infer": _post("Compute", _infer(contract)),
        f"{base}/versions/{{version}}/infer": _post("Compute, by this version", _infer(contract)),
        f"/v1/models/{model}:predict": _post("Compute; values in, values out", _predict()),
        "/v2/repository/index": _post("What is served", {"type": "object"}),
        "/metrics": _get("For Prometheus"),
    }
    info = {"title": f"{model} on DMI", "version": version("dmi")}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _get(summary: str, *others: str) -> dict[str, Any]:
    answers = {"200": {"description": "Yes, or what was asked"}} | {code: {"description": "No"} for code in others}
    return {"get": {"summary": summary, "responses": answers}}


def _post(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    answers = {
        "200": "The answer",
        "400": "A field of the request is wrong: the answer names it",
        "413": "The request is too large",
        "429": "Too many requests wait; Retry-After says when to ask again",
        "500": "The request ended the processes that computed it",
        "503": "No replica could be reached",
        "504": "It was not computed in its time",
    }
    content = {"application/json": {"schema": schema}}
    return {
        "post": {
            "summary": summary,
            "parameters": [
                {
                    "name": "Timeout",
                    "in": "header",
                    "description": "Seconds to wait for the answer (30)",
                    "schema": {"type": "number"},
                }
            ],
            "requestBody": {"content": content},
            "responses": {code: {"description": text} for code, text in answers.items()},
        }
    }


def _infer(contract: Contract) -> dict[str, Any]:
    listed = {"type": "array", "items": {"oneOf": [_tensor(info) for info in contract.inputs]}}
    return {"type": "object", "required": ["inputs"], "properties": {"id": {"type": "string"}, "inputs": listed}}


def _tensor(info: TensorInfo) -> dict[str, Any]:
    datatype = DATATYPES.get(info.dtype, info.dtype)
    return {
        "type": "object",
        "description": f"{datatype} {shown(info)}",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": info.name},
            "datatype": {"enum": [datatype] if datatype in DTYPES else [BYTES]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "array"},
        },
    }


def _predict() -> dict[str, Any]:
    return {"type": "object", "required": ["instances"], "properties": {"instances": {"type": "array", "minItems": 1}}}

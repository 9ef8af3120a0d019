"""``POST /v1/models/NAME:predict``: ``{"instances": [...]}`` in, ``{"predictions": [...]}`` out; and a page that says how to ask.

An instance is the value of the model's one input, as nested lists; or an object with a value for each input.
"""

import html
import json
from typing import Any

import msgspec
import numpy as np

from dmi_node.gateway.contract import Contract, Inputs, shown
from dmi_node.gateway.http import JSON, HttpError, Request
from dmi_node.gateway.tensors import GivenTensor, from_json, to_json
from dmi_node.gateway.v2 import Written, decode_json
from dmi_protocol.serving.datatypes import DATATYPES

_encoder = msgspec.json.Encoder()


def read(request: Request, contract: Contract) -> Inputs:
    """What is asked. Raises ``HttpError`` that names the field."""
    body = decode_json(request.content())
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list) or not instances:
        raise HttpError(400, 'instances: the body is {"instances": [...]}, with one value for each input or more')
    if not contract.is_batched:
        raise HttpError(400, "this model computes no list of inputs; ask it by POST /v2/models/NAME/infer")
    columns = {info.name: _column(instances, info.name, len(contract.inputs)) for info in contract.inputs}
    given = []
    for info in contract.inputs:
        datatype = contract.datatype(info.name)
        try:
            shape = np.shape(columns[info.name])
        except ValueError:
            raise HttpError(400, f"instances: the values of {info.name!r} are not of equal shapes") from None
        if len(shape) > len(info.shape):
            raise HttpError(
                400, f"instances: a value of {info.name!r} has the shape {list(shape[1:])}, not {shown(info)[1:]}"
            )
        given.append(
            GivenTensor(info.name, datatype, shape, from_json(datatype, shape, columns[info.name], "instances"))
        )
    return contract.check(given, {info.name: "instances" for info in contract.inputs})


def _column(instances: list[Any], name: str, inputs: int) -> list[Any]:
    """The values of one input."""
    if not any(isinstance(each, dict) for each in instances):
        if inputs > 1:
            raise HttpError(400, f"instances[0]: the model has {inputs} inputs; an object with {name!r} is wanted")
        return instances
    for nth, each in enumerate(instances):
        if not isinstance(each, dict) or name not in each:
            raise HttpError(400, f"instances[{nth}]: {name!r} is missing")
    return [each[name] for each in instances]


def write(tensors: tuple[GivenTensor, ...], version: str) -> Written:
    """One prediction for each instance: the value of the one output, or an object of all."""
    columns = {tensor.name: np.reshape(np.array(to_json(tensor)), tensor.shape).tolist() for tensor in tensors}
    if len(columns) == 1:
        (predictions,) = columns.values()
    else:
        predictions = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Written(_encoder.encode({"predictions": predictions, "model_version": version}), JSON, ())


def page(model: str, contract: Contract) -> bytes:
    """How to ask, for people."""
    body = {
        "inputs": [
            {
                "name": info.name,
                "datatype": DATATYPES.get(info.dtype, info.dtype),
                "shape": [max(size, 1) for size in shown(info)],
                "data": ["..."],
            }
            for info in contract.inputs
        ]
    }
    asked = f"curl -H 'Content-Type: application/json' -d '{json.dumps(body)}' http://HOST:PORT/v2/models/{model}/infer"
    rows = "".join(
        f"<tr><td>{what}</td><td>{html.escape(info.name)}</td><td>{DATATYPES.get(info.dtype, info.dtype)}</td>"
        f"<td>{shown(info)}</td></tr>"
        for what, infos in (("input", contract.inputs), ("output", contract.outputs))
        for info in infos
    )
    title = f"{html.escape(model)} on DMI"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui;max-width:46em;margin:3em auto;padding:0 1em}}pre{{background:#f4f4f4;padding:1em;
overflow:auto}}td{{padding:.2em 1em .2em 0}}</style><h1>{title}</h1>
<p>This gateway speaks the Open Inference Protocol, version 2.
<a href="/openapi.json">openapi.json</a> describes every address.</p>
<table>{rows}</table><pre>{html.escape(asked)}</pre></html>""".encode()

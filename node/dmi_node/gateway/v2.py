"""Requests and answers of the Open Inference Protocol, version 2, with its extension for binary tensors.

A body is JSON, or JSON and after it the bytes of tensors; the header ``Inference-Header-Content-Length`` says where the JSON
ends, in both directions. (https://github.com/kserve/open-inference-protocol)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from dmi_node.gateway.contract import Contract, Inputs
from dmi_node.gateway.http import JSON, OCTETS, HttpError, Request
from dmi_node.gateway.tensors import (
    BYTES,
    DTYPES,
    GivenTensor,
    check_size,
    check_strings,
    from_json,
    shape_of,
    strings_from_json,
    to_json,
)
from dmi_protocol import limits

JSON_LENGTH = b"Inference-Header-Content-Length"
_JSON_LENGTH = JSON_LENGTH.lower()
_REFUSED = {
    "sequence_id": "sequences are not kept here",
    "sequence_start": "sequences are not kept here",
    "sequence_end": "sequences are not kept here",
    "priority": "requests have no priorities here",
    "shared_memory_region": "shared memory of a client is not read here; send the bytes",
}
_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class Wanted(NamedTuple):
    """How the answer is to be written. ``outputs`` are those that are wanted, None for all, each with whether as bytes."""

    id: str | None
    outputs: dict[str, bool] | None
    is_binary: bool
    within_ms: int | None


class Written(NamedTuple):
    """The body of an answer, and what its headers say."""

    body: bytes
    kind: bytes
    headers: tuple[tuple[bytes, bytes], ...]


def decode_json(data: bytes | memoryview) -> Any:
    """Raises ``HttpError``."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, f"the body is no JSON: {error}") from error
    except RecursionError as error:
        raise HttpError(400, "the body is nested too deep") from error


def read(request: Request, contract: Contract) -> tuple[Inputs, Wanted]:
    """What is asked. Raises ``HttpError`` that names the field."""
    content = request.content()
    said = request.headers.get(_JSON_LENGTH)
    if said is None:
        text, rest = memoryview(content), memoryview(b"")
    else:
        length = int(said) if said.isdigit() and len(said) < 12 else -1
        if not 0 <= length <= len(content):
            raise HttpError(400, f"{JSON_LENGTH.decode()}: {said[:40]!r} in a body of {len(content)} bytes")
        text, rest = memoryview(content)[:length], memoryview(content)[length:]
    body = decode_json(text)
    if not isinstance(body, dict):
        raise HttpError(400, "the body is no JSON object")
    given, fields = _inputs(body.get("inputs"), rest)
    return contract.check(given, fields), _wanted(body, contract)


def _inputs(value: Any, rest: memoryview) -> tuple[list[GivenTensor], dict[str, str]]:
    """The tensors, and the field of each by its name."""
    if not isinstance(value, list):
        raise HttpError(400, "inputs: a list of tensors is wanted")
    if len(value) > limits.MODEL_TENSORS:
        raise HttpError(400, f"inputs: more than {limits.MODEL_TENSORS} tensors")
    given, fields = list[GivenTensor](), dict[str, str]()
    for nth, each in enumerate(value):
        field = f"inputs[{nth}]"
        if not isinstance(each, dict):
            raise HttpError(400, f"{field}: an object is wanted")
        name = each.get("name")
        if not isinstance(name, str):
            raise HttpError(400, f"{field}.name: a string is wanted")
        tensor, taken = _input(name, each, rest, field)
        given.append(tensor)
        fields.setdefault(name, field)
        rest = rest[taken:]
    if rest.nbytes:
        raise HttpError(400, f"{rest.nbytes} bytes come after the last tensor: binary_data_size says less")
    return given, fields


def _input(name: str, each: Mapping[str, Any], rest: memoryview, field: str) -> tuple[GivenTensor, int]:
    """A tensor, and how many of the bytes after the JSON are its own."""
    datatype, shape = each.get("datatype"), shape_of(each.get("shape"), f"{field}.shape")
    if not isinstance(datatype, str) or datatype not in {*DTYPES, BYTES}:
        raise HttpError(400, f"{field}.datatype: {str(datatype)[:40]!r} is none of {', '.join(DTYPES)} and {BYTES}")
    parameters = _parameters(each, field)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in each:
            raise HttpError(400, f"{field}.data: it is missing, and so is parameters.binary_data_size")
        read_ = strings_from_json if datatype == BYTES else lambda s, d, f: from_json(datatype, s, d, f)
        return GivenTensor(name, datatype, shape, read_(shape, each["data"], f"{field}.data")), 0
    if type(size) is not int or not 0 <= size <= rest.nbytes:
        raise HttpError(
            400, f"{field}.parameters.binary_data_size: {str(size)[:40]} of {rest.nbytes} bytes that are left"
        )
    if "data" in each:
        raise HttpError(400, f"{field}.data: it is given as bytes, too")
    check_size(datatype, shape, size, f"{field}.parameters.binary_data_size")
    if datatype == BYTES:
        check_strings(shape, rest[:size], field)
    return GivenTensor(name, datatype, shape, rest[:size]), size


def _parameters(value: Mapping[str, Any], field: str) -> dict[str, Any]:
    found = value.get("parameters")
    if found is None:
        return {}
    where = f"{field}.parameters" if field else "parameters"
    if not isinstance(found, dict):
        raise HttpError(400, f"{where}: an object is wanted")
    for name, why in _REFUSED.items():
        if found.get(name):
            raise HttpError(400, f"{where}.{name}: {why}")
    return found


def _wanted(body: Mapping[str, Any], contract: Contract) -> Wanted:
    parameters = _parameters(body, "")
    identity = body.get("id")
    if identity is not None and not isinstance(identity, str):
        raise HttpError(400, "id: a string is wanted")
    is_binary = _flag(parameters, "binary_data_output", "parameters")
    timeout = parameters.get("timeout")
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise HttpError(400, "parameters.timeout: a whole number of microseconds is wanted")
    within_ms = -(-timeout // 1000) if timeout else None
    outputs = body.get("outputs")
    if outputs is None:
        return Wanted(identity, None, is_binary, within_ms)
    if not isinstance(outputs, list):
        raise HttpError(400, "outputs: a list is wanted")
    known = [info.name for info in contract.outputs]
    chosen: dict[str, bool] = {}
    for nth, each in enumerate(outputs):
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str) or name not in known:
            raise HttpError(400, f"outputs[{nth}].name: {str(name)[:80]!r} is none of {', '.join(known)}")
        own = _parameters(each, f"outputs[{nth}]")
        if own.get("classification"):
            raise HttpError(
                400, f"outputs[{nth}].parameters.classification: classes are not named here; read the scores"
            )
        chosen[name] = _flag(own, "binary_data", f"outputs[{nth}].parameters") if "binary_data" in own else is_binary
    return Wanted(identity, chosen or None, is_binary, within_ms)


def _flag(parameters: Mapping[str, Any], name: str, where: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise HttpError(400, f"{where}.{name}: true or false is wanted")
    return value


def write(model: str, version: str, tensors: Sequence[GivenTensor], wanted: Wanted) -> Written:
    """The answer."""
    outputs, frames = list[dict[str, Any]](), list[Any]()
    for tensor in tensors:
        if wanted.outputs is not None and tensor.name not in wanted.outputs:
            continue
        is_binary = wanted.is_binary if wanted.outputs is None else wanted.outputs[tensor.name]
        shown: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if is_binary:
            shown["parameters"] = {"binary_data_size": tensor.length_bytes}
            frames.append(tensor.data)
        else:
            shown["data"] = to_json(tensor)
        outputs.append(shown)
    body: dict[str, Any] = {"model_name": model, "model_version": version}
    if wanted.id is not None:
        body["id"] = wanted.id
    text = _encoder.encode(body | {"outputs": outputs})
    if not frames:
        return Written(text, JSON, ())
    return Written(b"".join([text, *frames]), OCTETS, ((JSON_LENGTH, b"%d" % len(text)),))

"""The words of the Open Inference Protocol for the dtypes of tensors."""

from dmi_protocol.model import ModelContent

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
"""By torch's name of a dtype, the protocol's."""


def unspeakable(content: ModelContent) -> str:
    """An input or output that the protocol has no word for, and its dtype; nothing, where it can say all of them."""
    odd = next((info for info in (*content.inputs, *content.outputs) if info.dtype not in DATATYPES), None)
    return "" if odd is None else f"{odd.name!r} is {odd.dtype}"

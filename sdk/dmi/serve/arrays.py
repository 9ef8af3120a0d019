"""Arrays as the Open Inference Protocol names them. NumPy and torch are loaded when there are arrays: to ask needs neither."""

from typing import Any

from dmi.errors import UsageError
from dmi_protocol.serving.datatypes import DATATYPES

_DTYPES = {datatype: name for name, datatype in DATATYPES.items()}


def is_tensor(value: Any) -> bool:
    """Is it one of torch's?"""
    return type(value).__module__.partition(".")[0] == "torch"


def written(name: str, value: Any) -> tuple[str, list[int], bytes]:
    """The datatype, the shape and the bytes of an array, of a torch tensor (bfloat16 too), or of nested lists (floats become
    float32). Raises ``UsageError``."""
    import numpy as np  # see the module

    if is_tensor(value):
        import torch  # it is loaded already

        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            return "BF16", list(value.shape), value.view(torch.uint16).numpy().tobytes()
        value = value.numpy()
    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic) and array.dtype == np.float64:
        array = array.astype(np.float32)
    datatype = DATATYPES.get(str(array.dtype))
    if datatype is None:
        raise UsageError(f"{name!r} is an array of {array.dtype}; only numbers, true and false can be sent")
    return datatype, list(array.shape), np.ascontiguousarray(array).tobytes()


def read(datatype: str, shape: list[int], data: memoryview, *, as_tensor: bool) -> Any:
    """An array that is ours, or a tensor. NumPy has no bfloat16: in an array such values are float32."""
    import numpy as np  # see the module

    if datatype == "BF16":
        array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    else:
        array = np.frombuffer(data, _DTYPES[datatype]).reshape(shape).copy()
    if not as_tensor:
        return array
    import torch  # it is loaded already: a tensor was given

    found = torch.from_numpy(array)
    return found.to(torch.bfloat16) if datatype == "BF16" else found

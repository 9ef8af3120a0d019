"""torch's dtypes by the names that cross the wire."""

import torch

from dmi_protocol.tensor_spec import ITEM_BYTES

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES if hasattr(torch, name)}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def sum_dtype(name: str) -> torch.dtype:
    """The dtype in which leaves are summed: float32 for halves and narrower floats, else the tensor's own."""
    dtype = DTYPES[name]
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype

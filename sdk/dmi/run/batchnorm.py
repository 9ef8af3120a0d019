"""BatchNorm and leaves of one sample: found in the first leaf of a pass, and not at its last batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmi.errors import UsageError


@contextmanager
def watched(module: nn.Module, samples: int, leaves: int) -> Iterator[None]:
    """Meanwhile one leaf of a pass is computed in which a batch of ``samples`` samples will be dealt to ``leaves`` leaves, some
    of them of one sample. Raises ``UsageError`` where BatchNorm could not compute those: each channel would have one value."""
    hooks = [
        layer.register_forward_pre_hook(_refuses(name, samples, leaves))
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuses(name: str, samples: int, leaves: int) -> Callable[[nn.Module, Any], None]:
    def look(layer: nn.Module, args: Any) -> None:
        given = args[0] if args else None
        if layer.training and isinstance(given, torch.Tensor) and given.dim() > 1 and given[0, 0].numel() == 1:
            raise UsageError(
                f"a batch of {samples} samples makes leaves of one sample, and {name} ({type(layer).__name__}) needs more in "
                "training: pass drop_last=True if it is the last batch, a larger batch_size, or fewer leaves to dmi.init "
                f"({leaves} now)"
            )

    return look

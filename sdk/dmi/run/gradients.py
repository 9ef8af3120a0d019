"""The gradients of one leaf, from ``backward`` to the leaf's end: whatever changes them in between would act on a part of the
step's gradient, and is refused."""

from collections.abc import Callable, Mapping

import torch

from dmi.errors import UsageError


class Gradients:
    """Of the parameters that train, by name."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters
        self._watched: set[str] = set()
        self._computed: dict[str, tuple[torch.Tensor, int]] = {}
        """What autograd gave last, and how often that had been written then."""

    def watch(self) -> None:
        """From now on, also what has thawed meanwhile."""
        for name, parameter in self._parameters.items():
            if name not in self._watched and parameter.requires_grad:
                self._watched.add(name)
                parameter.register_post_accumulate_grad_hook(self._note(name))

    def _note(self, name: str) -> Callable[[torch.Tensor], None]:
        def note(parameter: torch.Tensor) -> None:
            grad = parameter.grad
            if grad is not None:
                self._computed[name] = grad, grad._version

        return note

    def clear(self) -> None:
        """There are none."""
        self._computed.clear()
        for parameter in self._parameters.values():
            parameter.grad = None

    def owns(self, tensor: torch.Tensor) -> bool:
        """Is it one of this leaf?"""
        return any(tensor is grad for grad, _ in self._computed.values())

    @property
    def is_empty(self) -> bool:
        """Are there none?"""
        return all(parameter.grad is None for parameter in self._parameters.values())

    def check(self) -> None:
        """Raise ``UsageError`` when somebody has changed one since it was computed."""
        for name, (grad, version) in self._computed.items():
            if self._parameters[name].grad is not grad or grad._version != version:
                raise UsageError(
                    f"the gradient of {name} was changed inside a leaf after backward() (zero_grad, clip_grad_value_, or by "
                    "hand): a leaf has only a part of the step's gradient. Leaves begin without gradients, so leave zero_grad() "
                    "out; to clip write run.optimizer(optimizer, clip_norm=...)"
                )

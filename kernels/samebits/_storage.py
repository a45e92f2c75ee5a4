"""What makes an operator on float32 tensors one on bfloat16 tensors too: a decorator.

    @stored("x", parameters=("weight", "bias"))
    def linear(x, weight, bias=None): ...

The activations are all float32 or all bfloat16, and so is the result. Parameters are float32, or bfloat16 beside
bfloat16 activations. The operator computes in binary32 on exactly widened inputs, as its docstring says; its result is
rounded once. A gradient that comes in is widened; the gradient of a bfloat16 input is rounded once; that of a float32
parameter is what it always is, and continues the chain in `.grad` of a leaf. The gradient of a bfloat16 leaf begins at
+0 and is rounded; torch adds what further backwards bring, and rounds again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from samebits._check import require_tensor
from samebits._split import differentiable
from samebits.bfloat16 import round_once, widen, widened

Function = TypeVar("Function", bound=Callable[..., Any])


class _Saved(NamedTuple):
    """An argument that a backward needs, as the caller has it, and which part of it."""

    source: Tensor
    version: int
    geometry: tuple[torch.Size, tuple[int, ...], int]


class _Saving:
    """What stands in for saved tensors: bfloat16 is kept as bfloat16, and a change of it in place is noticed.

    Under hooks torch itself no longer looks for such changes, so this holds for the arguments in float32 too.
    """

    def __init__(self, operator: str, given: dict[str, Tensor], taken: dict[str, Tensor]) -> None:
        self._operator = operator
        self._sources = {taken[name].untyped_storage().data_ptr(): tensor.detach() for name, tensor in given.items()}

    def pack(self, tensor: Tensor) -> Tensor | _Saved:
        source = self._sources.get(tensor.untyped_storage().data_ptr())
        if source is None or not tensor.numel():
            return tensor
        return _Saved(source, source._version, (tensor.shape, tensor.stride(), int(tensor.storage_offset())))

    def unpack(self, saved: Tensor | _Saved) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if saved.source._version != saved.version:
            raise RuntimeError(
                f"{self._operator}: a tensor needed for its gradient has been modified by an inplace operation: "
                f"{saved.source.dtype} {list(saved.source.shape)} is at version {saved.source._version}, "
                f"expected version {saved.version}"
            )
        whole = widened(saved.source) if saved.source.dtype is torch.bfloat16 else saved.source
        return whole.as_strided(*saved.geometry)


class _Operator(NamedTuple):
    """An operator on float32 tensors, and what is declared of it."""

    name: str
    function: Callable[..., Any]
    signature: inspect.Signature
    activations: tuple[str, ...]
    parameters: tuple[str, ...]
    keeps_float32: bool

    def check(self, tensors: dict[str, Tensor]) -> list[str]:
        """The names of the bfloat16 tensors. TypeError for dtypes that do not go together."""
        is_narrow = any(tensors[name].dtype is torch.bfloat16 for name in self.activations if name in tensors)
        narrow = []
        for name in self.activations + self.parameters:
            if name not in tensors:
                continue
            free = name in self.parameters and tensors[name].dtype is not torch.bfloat16
            wanted = torch.bfloat16 if is_narrow and not free else torch.float32
            require_tensor(self.name, name, tensors[name], wanted)
            narrow += [name] if wanted is torch.bfloat16 else []
        return narrow

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        given = {name: value for name, value in bound.arguments.items() if isinstance(value, Tensor)}
        taken = given | {name: widen(given[name], self.name) for name in self.check(given)}
        bound.arguments.update(taken)
        if differentiable(*taken.values()):
            saving = _Saving(self.name, given, taken)
            with torch.autograd.graph.saved_tensors_hooks(saving.pack, saving.unpack):
                result = self.function(*bound.args, **bound.kwargs)
        else:
            result = self.function(*bound.args, **bound.kwargs)
        return result if self.keeps_float32 else round_once(result, self.name)


def stored(
    *activations: str, parameters: tuple[str, ...] = (), keeps_float32: bool = False
) -> Callable[[Function], Function]:
    """Let an operator take bfloat16 in the named arguments too. keeps_float32: the result is not rounded, as losses."""

    def wrap(function: Function) -> Function:
        narrow = _Operator(
            function.__name__, function, inspect.signature(function), activations, parameters, keeps_float32
        )

        @functools.wraps(function)
        def operator(*args: Any, **kwargs: Any) -> Any:
            for value in args:
                if isinstance(value, Tensor) and value.dtype is torch.bfloat16:
                    return narrow(*args, **kwargs)
            for value in kwargs.values():
                if isinstance(value, Tensor) and value.dtype is torch.bfloat16:
                    return narrow(*args, **kwargs)
            return function(*args, **kwargs)

        return cast(Function, operator)

    return wrap

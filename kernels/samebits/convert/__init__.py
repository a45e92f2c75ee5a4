"""convert: a torch module becomes one that computes with samebits, on the same parameters, or is refused by name."""

from __future__ import annotations

from torch.nn import Module

from samebits.convert._errors import CannotConvert
from samebits.convert._sound import faults
from samebits.convert._tree import converted

__all__ = ["CannotConvert", "convert"]


def convert(module: Module, *, causal: bool = False) -> Module:
    """The module's twin in samebits: the same parameters (shared, not copied), the same names in its state_dict().

    Layers that `samebits.nn` has become those; Sequential, TransformerEncoderLayer and TransformerEncoder are built
    anew of them. Any other class of one's own is traced by torch.fx, and every operation in its forward is replaced;
    a value that is used several times goes through `samebits.fork`, in the order of its uses. Nothing is handed to a
    torch kernel but what moves elements without computing (views, reshapes, slices, concatenation) and integers.
    causal: of the attention in every TransformerEncoderLayer; such layers take no mask.

    Call `samebits.nn.place_` before a training forward where there is dropout, as for any module of samebits.nn.

    CannotConvert (a TypeError), naming the path of every submodule that stands in the way, and why: an unknown class or
    operation, an option that has no counterpart (padding modes, bias_kv, dropout of attention weights, GELU by tanh),
    dtypes, devices, hooks, parametrizations, a patched forward, parameters that are used in more than one place,
    control flow that cannot be traced. The module given is never changed.
    """
    if not isinstance(module, Module):
        raise TypeError(f"convert: module must be a torch.nn.Module, not {type(module).__name__}")
    reasons = faults(module)
    twin = converted(module, "", reasons, causal)
    if twin is None or reasons:
        raise CannotConvert(reasons)
    return twin

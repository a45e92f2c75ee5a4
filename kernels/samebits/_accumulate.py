"""Where a backward puts a gradient: into the parameter's own buffer, continuing its chain, or into a fresh tensor.

The contract wants the gradient of a whole batch to equal, bit for bit, the one summed over its microbatches in order.
`p.grad += new` would add two finished sums; so a backward continues the chain that stands in `p.grad` and returns no
gradient of its own. Only a leaf that torch is about to accumulate into is treated so. Under `torch.autograd.grad`
the same backward starts from +0, returns the gradient, and leaves `p.grad` alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def refuse_second_derivative(operator: str) -> None:
    """Raise RuntimeError in a backward that torch records (create_graph=True): kernels have no second derivative.

    torch's own `once_differentiable` lets such a backward pass as a constant when grad_output needs no gradient,
    and the second derivative is then silently wrong.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{operator}: there is no second derivative; call backward without create_graph")


class Gradient(NamedTuple):
    """One gradient under way."""

    buffer: Tensor
    """Contiguous binary32; holds the chain so far (+0 at the beginning). The kernel continues it in place."""
    returned: Tensor | None
    """What the backward returns to torch for this input: None when the buffer is the parameter's own .grad."""
    fresh: bool = False
    """Whether nothing is in the buffer yet, not even +0: the kernel begins the chain. Only if asked for."""


def gradient_of(
    ctx: Any, position: int, like: Tensor | torch.Size, operator: str, *, may_be_fresh: bool = False
) -> Gradient | None:
    """Decide where the gradient of input `position` goes; call this inside a backward, once per such input.

    ctx: the autograd context, whose `next_functions` name the node that each input's gradient flows to.
    like: the input, or its shape.
    may_be_fresh: the caller looks at `fresh`, and is spared the zeros where a chain begins.
    None: nobody asks for this gradient; skip the work.

    torch's own answer decides (`_will_engine_execute_node`, torch 2.13): True, the node of the leaf runs after us, so
    we may fill .grad ourselves; False, `backward(inputs=...)` leaves this leaf out; RuntimeError, `autograd.grad`
    collects the leaf's gradient.
    """
    if not ctx.needs_input_grad[position]:
        return None
    node = ctx.next_functions[position][0]
    leaf: Tensor | None = getattr(node, "variable", None)
    if leaf is None:
        return _separate(like, may_be_fresh)
    try:
        accumulates = torch._C._will_engine_execute_node(node)
    except RuntimeError:
        return _separate(like, may_be_fresh)
    return _in_place(leaf, operator, may_be_fresh) if accumulates else None


def _begin(shape: torch.Size, fresh: bool) -> Tensor:
    return (torch.empty if fresh else torch.zeros)(shape, dtype=torch.float32)


def _separate(like: Tensor | torch.Size, fresh: bool) -> Gradient:
    buffer = _begin(like.shape if isinstance(like, Tensor) else like, fresh)
    return Gradient(buffer, buffer, fresh)


def _in_place(leaf: Tensor, operator: str, may_be_fresh: bool) -> Gradient:
    if leaf._backward_hooks or leaf._post_accumulate_grad_hooks:
        raise RuntimeError(
            f"{operator}: a parameter has gradient hooks, which fused accumulation into .grad would pass by; "
            "remove them, or ask for the gradient with torch.autograd.grad"
        )
    if leaf.grad is None:
        leaf.grad = _begin(leaf.shape, may_be_fresh)
        return Gradient(leaf.grad, None, may_be_fresh)
    if not leaf.grad.is_contiguous():
        leaf.grad = leaf.grad.contiguous()
    torch.autograd.graph.increment_version(leaf.grad)
    return Gradient(leaf.grad, None)

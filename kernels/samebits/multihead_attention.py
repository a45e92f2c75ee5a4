"""Multi-head self-attention: linear, attention by heads on what it made, linear."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._check import require, require_tensor, size
from samebits._split import differentiable
from samebits._storage import stored
from samebits.attention import Problem, along_rows, problem_of
from samebits.matmul import linear
from samebits.rotary import Turn, turn_for


class _Layout(NamedTuple):
    """How queries, keys and values stand side by side in a row: num_heads, num_kv_heads and num_kv_heads heads."""

    num_heads: int
    num_kv_heads: int
    width: int
    turn: Turn | None

    def parts(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v seen as heads [B, heads, T, D] in one tensor [B, T, all heads * D]."""
        heads = _heads(qkv, self.num_heads + 2 * self.num_kv_heads)
        after = self.num_heads + self.num_kv_heads
        return heads[:, : self.num_heads], heads[:, self.num_heads : after], heads[:, after:]

    def rotate(self, qkv: Tensor, *, back: bool = False) -> None:
        """Turn queries and keys in place, which only this operator sees."""
        if self.turn is not None:
            turned = _heads(qkv, self.num_heads + 2 * self.num_kv_heads)[:, : self.num_heads + self.num_kv_heads]
            self.turn.run(turned, turned, back=back)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, heads * D] seen as [B, heads, T, D]."""
    return x.view(*x.shape[:2], num_heads, x.shape[-1] // num_heads).transpose(1, 2)


class _PackedAttention(torch.autograd.Function):
    """attention on q, k and v as one linear made them; their gradient comes out in one piece."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: _Layout, problem: Problem) -> Tensor:
        ctx.layout, ctx.problem, probabilities = layout, problem, problem.probabilities()
        out = _packed_forward(qkv, layout, problem, probabilities)
        ctx.save_for_backward(qkv, probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative("multihead_attention")
        qkv, probabilities = ctx.saved_tensors
        grad_qkv, layout = torch.empty(qkv.shape, dtype=torch.float32), ctx.layout
        q, k, v = layout.parts(qkv)
        grad_q, grad_k, grad_v = layout.parts(grad_qkv)
        grad = _heads(along_rows(grad), layout.num_heads)
        made = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v}
        ctx.problem.backward(probabilities, q=q, k=k, v=v, grad=grad, **made)
        layout.rotate(grad_qkv, back=True)
        return grad_qkv, None, None


def _packed_forward(qkv: Tensor, layout: _Layout, problem: Problem, probabilities: Tensor | None) -> Tensor:
    layout.rotate(qkv)
    q, k, v = layout.parts(qkv)
    out = torch.empty((*qkv.shape[:2], layout.num_heads * layout.width), dtype=torch.float32)
    problem.forward(probabilities, q=q, k=k, v=v, out=_heads(out, layout.num_heads))
    return out


def _check_shapes(tensors: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    for name, (tensor, shape) in tensors.items():
        if tensor is not None or not name.endswith("bias"):
            require_tensor("multihead_attention", name, tensor)
            assert tensor is not None  # for the type checker: None is no Tensor
            require(tensor.shape == shape, "multihead_attention", f"{name} must be {list(shape)}, not {size(tensor)}")


def _layout(x: Tensor, num_heads: int, num_kv_heads: int, rotary_base: float | None) -> _Layout:
    batch, rows, features = x.shape
    whole = num_heads >= 1 and features >= num_heads and features % num_heads == 0
    require(whole, "multihead_attention", f"{features} features cannot be cut into {num_heads} heads")
    grouped = num_kv_heads >= 1 and num_heads % num_kv_heads == 0
    require(grouped, "multihead_attention", f"{num_heads} heads cannot share {num_kv_heads} heads of keys")
    width, turn = features // num_heads, None
    if rotary_base is not None:
        shape = torch.Size((batch, num_heads, rows, width))
        turn = turn_for("multihead_attention", shape, 0, rotary_base, interleaved=False)
    return _Layout(num_heads, num_kv_heads, width, turn)


@stored("x", parameters=("qkv_weight", "qkv_bias", "out_weight", "out_bias"))
def multihead_attention(
    x: Tensor, qkv_weight: Tensor, qkv_bias: Tensor | None, out_weight: Tensor, out_bias: Tensor | None,
    num_heads: int, causal: bool = False, mask: Tensor | None = None, num_kv_heads: int | None = None,
    rotary_base: float | None = None,
) -> Tensor:  # fmt: skip
    """Multi-head self-attention of float32 x [B, T, F]; the result is [B, T, F].

    With H = num_heads, G = num_kv_heads (H if None) and D = F / H: qkv = linear(x, qkv_weight [(H + 2G) * D, F],
    qkv_bias), q, k and v side by side, each with its heads side by side; with a rotary_base, rotary of q and of k from
    position 0 on; attention with causal and mask; linear(that, out_weight [F, F], out_bias [F]). Gradients as of those.
    A bias may be None.

    TypeError: not float32 tensors; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    require_tensor("multihead_attention", "x", x)
    require(x.dim() == 3, "multihead_attention", f"x must be [B, T, F], not {size(x)}")
    layout, f = _layout(x, num_heads, num_heads if num_kv_heads is None else num_kv_heads, rotary_base), x.shape[2]
    wide = (num_heads + 2 * layout.num_kv_heads) * layout.width
    _check_shapes({
        "qkv_weight": (qkv_weight, (wide, f)), "qkv_bias": (qkv_bias, (wide,)),
        "out_weight": (out_weight, (f, f)), "out_bias": (out_bias, (f,)),
    })  # fmt: skip
    qkv = linear(x, qkv_weight, qkv_bias)
    q, k, _ = layout.parts(qkv)
    problem = problem_of("multihead_attention", q, k, causal, mask)
    if differentiable(qkv):
        made: Tensor = _PackedAttention.apply(qkv, layout, problem)  # type: ignore[no-untyped-call]  # torch's own
    else:
        made = _packed_forward(qkv, layout, problem, None)
    return linear(made, out_weight, out_bias)

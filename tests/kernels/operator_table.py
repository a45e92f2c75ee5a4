"""Every public operator: inputs for it and how it is called. What all must hold is tested over this one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import samebits
import torch
from kernels_bits import floats
from torch import Tensor

Call = Callable[..., Tensor]
NO_OPERATORS = {
    "canary",
    "canonical_",
    "copy_canonical_",
    "digest",
    "get_num_threads",
    "set_num_threads",
    "warm",
    "convert",
    "CannotConvert",
}
NO_OPERATORS |= {"to_float32"}  # takes bfloat16; test_kernels_bfloat16.py
SHARED = "matmul with one b for all batches"  # an entry's key beside the operator's name


class Entry(NamedTuple):
    """An operator: its batch inputs, whose first axis has a size to be drawn, then its parameters."""

    operator: str
    call: Call
    batch: tuple[tuple[int, ...], ...]
    """Shapes of a row of each batch input; a shape (-n,) is one int64 below n for each row."""
    parameters: tuple[tuple[int, ...], ...] = ()
    rows_are_free: bool = True
    """Whether row i of the result depends on row i of the batch inputs alone."""
    takes_any_shape: bool = False
    bfloat16: str = "mixed"
    """mixed: parameters in float32 or bfloat16; alike: all of them in bfloat16; no: it takes none."""

    def inputs(self, seed: int, flavour: str, rows: int) -> list[Tensor]:
        """Fresh inputs; floats are leaves that require gradients."""
        made = [_drawn(seed + i, flavour, rows, shape) for i, shape in enumerate(self.batch)]
        made += [_drawn(seed + 50 + i, flavour, None, shape) for i, shape in enumerate(self.parameters)]
        return [x.requires_grad_() if x.is_floating_point() else x for x in made]

    def both(self, inputs: list[Tensor], seed: int) -> list[Tensor]:
        """The result, and the gradients of the inputs, of which each began at +0."""
        out = self.call(*inputs)
        grad = upstream(out, seed)
        leaves = [x for x in inputs if x.requires_grad]
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def upstream(out: Tensor, seed: int) -> Tensor:
    """A gradient for a result."""
    return torch.from_numpy(floats(seed + 99, "plain", *out.shape)).to(out.dtype)


def _drawn(seed: int, flavour: str, rows: int | None, shape: tuple[int, ...]) -> Tensor:
    head = () if rows is None else (rows,)
    if shape and shape[0] < 0:
        classes = np.random.Generator(np.random.PCG64(seed)).integers(0, -shape[0], head + shape[1:])
        return torch.from_numpy(classes)
    return torch.from_numpy(floats(seed, flavour, *head, *shape))


def _elementwise(name: str, inputs: int = 1) -> Entry:
    return Entry(name, getattr(samebits, name), ((19,),) * inputs, takes_any_shape=True)


ENTRIES: dict[str, Entry] = {
    name: _elementwise(name)
    for name in ("relu", "gelu", "silu", "exp", "log", "erf", "tanh", "sigmoid", "sqrt", "rsqrt", "sin", "cos")
}
ENTRIES["add"] = _elementwise("add", 2)
ENTRIES["mul"] = _elementwise("mul", 2)
ENTRIES["div"] = _elementwise("div", 2)
ENTRIES |= {
    "matmul": Entry("matmul", samebits.matmul, ((3, 7), (7, 5)), bfloat16="alike"),
    SHARED: Entry("matmul", samebits.matmul, ((3, 7),), ((7, 5),), bfloat16="alike"),
    "linear": Entry("linear", samebits.linear, ((9,),), ((5, 9), (5,))),
    "linear of three axes": Entry("linear", samebits.linear, ((2, 9),), ((5, 9), (5,))),
    "softmax": Entry("softmax", samebits.softmax, ((21,),), takes_any_shape=True),
    "log_softmax": Entry("log_softmax", samebits.log_softmax, ((21,),), takes_any_shape=True),
    "add to every row": Entry("add", samebits.add, ((3, 7),), ((7,),), takes_any_shape=True, bfloat16="alike"),
    "mul of every row": Entry("mul", samebits.mul, ((3, 7),), ((3, 1),), takes_any_shape=True, bfloat16="alike"),
    "div of every row": Entry("div", samebits.div, ((3, 7),), ((3, 1),), takes_any_shape=True, bfloat16="alike"),
    "sum": Entry("sum", lambda x: samebits.sum(x, (1, 2)), ((3, 19),), takes_any_shape=True),
    "mean": Entry("mean", lambda x: samebits.mean(x, -1), ((3, 19),), takes_any_shape=True),
    "rms_norm": Entry("rms_norm", lambda x, w: samebits.rms_norm(x, w, 1e-6), ((21,),), ((21,),)),
    "layer_norm": Entry("layer_norm", lambda x, w, b: samebits.layer_norm(x, w, b, 1e-5), ((21,),), ((21,), (21,))),
    "attention": Entry("attention", samebits.attention, ((2, 9, 4),) * 3),
    "causal attention": Entry("attention", lambda q, k, v: samebits.attention(q, k, v, True), ((2, 9, 4),) * 3),
    "multihead_attention": Entry(
        "multihead_attention", lambda x, *p: samebits.multihead_attention(x, p[0], p[1], p[2], p[3], 2),
        ((5, 6),), ((18, 6), (18,), (6, 6), (6,)),
    ),
    "rotary": Entry("rotary", samebits.rotary, ((3, 5, 6),)),
    "conv2d": Entry(
        "conv2d", lambda x, w, b: samebits.conv2d(x, w, b, (1, 2), 1), ((3, 5, 6),), ((5, 3, 3, 2), (5,)),
    ),
    "batch_norm": Entry(
        "batch_norm",
        lambda x, w, b: samebits.batch_norm(x, torch.arange(3.0), torch.arange(1.0, 4.0), w, b, training=False),
        ((3, 5, 6),), ((3,), (3,)),
    ),
    "max_pool2d": Entry("max_pool2d", lambda x: samebits.max_pool2d(x, 3, 2, 1), ((2, 5, 6),)),
    "avg_pool2d": Entry("avg_pool2d", lambda x: samebits.avg_pool2d(x, 3, 2, 1), ((2, 5, 6),)),
    "mean_pool": Entry("mean_pool", samebits.mean_pool, ((3, 7),)),
    "position_embedding": Entry("position_embedding", samebits.position_embedding, ((3, 7),), ((3, 7),)),
    "embedding": Entry("embedding", samebits.embedding, ((-4, 3),), ((4, 5),), bfloat16="alike"),
    "dropout": Entry(
        "dropout", lambda x: samebits.dropout(x, 0.3, seed=1, site=2, step=3), ((21,),),
        rows_are_free=False, takes_any_shape=True,
    ),
    "cross_entropy": Entry(
        "cross_entropy", lambda x, t: samebits.cross_entropy(x, t, reduction="none"), ((11,), (-11,))
    ),
    "mean of cross_entropy": Entry(
        "cross_entropy", lambda x, t: samebits.cross_entropy(x, t, count=40), ((11,), (-11,)), rows_are_free=False
    ),
    "mse_loss": Entry("mse_loss", lambda x, t: samebits.mse_loss(x, t, "none"), ((11,), (11,))),
    "mean of mse_loss": Entry(
        "mse_loss", lambda x, t: samebits.mse_loss(x, t, count=40), ((11,), (11,)), rows_are_free=False
    ),
    "row_sum": Entry("row_sum", lambda x: samebits.row_sum(x, 0.5), ((),), rows_are_free=False, bfloat16="no"),
    "fork": Entry(
        "fork", lambda x: samebits.add(*samebits.fork(x, 2)), ((19,),), takes_any_shape=True, bfloat16="no"
    ),
    "to_bfloat16": Entry("to_bfloat16", samebits.to_bfloat16, ((19,),), takes_any_shape=True, bfloat16="no"),
}  # fmt: skip


def public_operators() -> set[str]:
    """The public functions that compute results."""
    named = {name for name in samebits.__all__ if callable(getattr(samebits, name))}
    return named - NO_OPERATORS

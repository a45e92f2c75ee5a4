"""Optimizers, clipping of gradients and learning rates, with the same bits on every machine."""

from samebits.optim._scalars import power
from samebits.optim.clipping import clip_grad_norm_, clip_grads_with_norm_, square_sums, total_norm
from samebits.optim.optimizers import SGD, Adam, AdamW
from samebits.optim.schedules import Constant, Cosine, MultiStep, Polynomial, Step, WarmUp, set_lr

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "MultiStep",
    "Polynomial",
    "Step",
    "WarmUp",
    "clip_grad_norm_",
    "clip_grads_with_norm_",
    "power",
    "set_lr",
    "square_sums",
    "total_norm",
]

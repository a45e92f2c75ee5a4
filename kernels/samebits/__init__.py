"""Operators for torch tensors whose results have the same bits on every machine. See README.md for the contract."""

from __future__ import annotations

from samebits import nn, optim, random
from samebits._canary import canary
from samebits._threads import get_num_threads, set_num_threads
from samebits._warm import warm
from samebits.arithmetic import add, div, mul
from samebits.attention import attention
from samebits.batch_norm import batch_norm
from samebits.bfloat16 import to_bfloat16, to_float32
from samebits.conv2d import conv2d
from samebits.convert import CannotConvert, convert
from samebits.cross_entropy import cross_entropy, row_sum
from samebits.digest import canonical_, copy_canonical_, digest
from samebits.dropout import dropout
from samebits.elementary import cos, erf, exp, log, rsqrt, sigmoid, sin, sqrt, tanh
from samebits.elementwise import gelu, relu, silu
from samebits.embedding import embedding
from samebits.fork import fork
from samebits.layer_norm import layer_norm
from samebits.matmul import linear, matmul
from samebits.mean_pool import mean_pool
from samebits.mse_loss import mse_loss
from samebits.multihead_attention import multihead_attention
from samebits.pool import avg_pool2d, max_pool2d
from samebits.position_embedding import position_embedding
from samebits.reductions import mean, sum
from samebits.rms_norm import rms_norm
from samebits.rotary import rotary
from samebits.softmax import log_softmax, softmax

PROFILE = "samebits-1"

__all__ = [
    "PROFILE",
    "CannotConvert",
    "add",
    "attention",
    "avg_pool2d",
    "batch_norm",
    "canary",
    "canonical_",
    "conv2d",
    "convert",
    "copy_canonical_",
    "cos",
    "cross_entropy",
    "digest",
    "div",
    "dropout",
    "embedding",
    "erf",
    "exp",
    "fork",
    "gelu",
    "get_num_threads",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max_pool2d",
    "mean",
    "mean_pool",
    "mse_loss",
    "mul",
    "multihead_attention",
    "nn",
    "optim",
    "position_embedding",
    "random",
    "relu",
    "rms_norm",
    "rotary",
    "row_sum",
    "rsqrt",
    "set_num_threads",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "sqrt",
    "sum",
    "tanh",
    "to_bfloat16",
    "to_float32",
    "warm",
]

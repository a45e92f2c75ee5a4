"""Modules over samebits' operators, with torch's names of classes, parameters and shapes.

State dicts interchange with torch's where torch has a module of the name. Nothing here draws from torch's generator:
drawn parameters are NaN until `init_(model, seed)` or load_state_dict.
"""

from samebits.nn.activations import GELU, Flatten, Identity, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Tanh
from samebits.nn.attention import MultiheadAttention
from samebits.nn.containers import Residual, Sequential
from samebits.nn.dropout import Dropout
from samebits.nn.images import AvgPool2d, Conv2d, MaxPool2d
from samebits.nn.linear import Embedding, Linear
from samebits.nn.norms import BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from samebits.nn.placing import init_, place_
from samebits.nn.transformer import MLP, SwiGLU, TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "GELU",
    "MLP",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "Identity",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "MultiheadAttention",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SwiGLU",
    "Tanh",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "init_",
    "place_",
]

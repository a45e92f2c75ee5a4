"""Where randomness of modules comes from: `init_` for parameters, `place_` for the masks of dropout."""

from __future__ import annotations

import torch
from torch.nn import Module

from samebits.nn._layer import Layer
from samebits.nn.dropout import Dropout
from samebits.random import site


@torch.no_grad()
def init_(module: Module, seed: int, prefix: str = "") -> Module:
    """Give every parameter its beginning, in place, from the seed and its path in the model; returns the module.

    The site of a parameter is `samebits.random.site(path)`, path being its name in `module.named_parameters()` behind
    the prefix; a part of a model gets its parameters as in the whole if the prefix says where it stands there, e.g.
    "encoder.2". What torch's own layers draw, by distribution: linear and convolution uniform within 1/sqrt(fan_in),
    embedding normal, projections of attention uniform by Glorot's rule, scales 1, shifts 0.

    TypeError, naming the paths: parameters of modules that are not of samebits.nn, whose beginning nobody wrote down.
    """
    strange, begun = [], set()
    for path, part in module.named_modules(prefix=prefix):
        for name, parameter in part.named_parameters(recurse=False):
            whole = f"{path}.{name}" if path else name
            if not isinstance(part, Layer) or name not in part.beginnings:
                strange.append(whole)
            elif id(parameter) not in begun:
                begun.add(id(parameter))
                part.beginnings[name].fill(parameter, seed, site(whole))
    if strange:
        raise TypeError(f"init_: nothing says how these parameters begin: {', '.join(strange)}")
    return module


def place_(module: Module, *, seed: int, step: int, sample: int = 0, prefix: str = "") -> Module:
    """Tell every Dropout in the module which masks come next; returns the module. Call it before every forward.

    seed: of the run; step: the training step; sample: the place of the microbatch's first row in the whole batch. A
    Dropout's site is its path in the module, behind the prefix, as in `init_`.
    """
    for path, part in module.named_modules(prefix=prefix):
        if isinstance(part, Dropout):
            part.place = {"seed": seed, "site": site(path), "step": step, "sample": sample}
    return module

"""Small models for the tests: as JSON documents that a test may spoil, and as specs."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from pnode.v1 import spec_pb2
from pnode.vnode import spec as specs

DELETE = object()

_CLASSIFIER: dict[str, Any] = {
    "id": "only",
    "run": "digits",
    "profile": "samebits-1",
    "seed": "7",
    "inputs": [{"name": "x0", "dtype": "DTYPE_F32", "shape": [3, 4]}],
    "targets": [{"name": "label", "dtype": "DTYPE_I64", "shape": []}],
    "operators": [
        {
            "name": "embed",
            "inputs": ["x0"],
            "output": "x1",
            "linear": {"in_features": 4, "out_features": 8, "bias": True},
        },
        {"name": "place", "inputs": ["x1"], "output": "x2", "position_embedding": {"tokens": 3, "features": 8}},
        {"name": "norm", "inputs": ["x2"], "output": "x3", "layer_norm": {"features": 8, "eps": 1e-5}},
        {"name": "mix", "inputs": ["x3"], "output": "x4", "multihead_attention": {"features": 8, "num_heads": 2}},
        {"name": "skip", "inputs": ["x2", "x4"], "output": "x5", "add": {}},
        {"name": "bend", "inputs": ["x5"], "output": "x6", "gelu": {}},
        {"name": "pool", "inputs": ["x6"], "output": "x7", "mean_pool": {}},
        {"name": "head", "inputs": ["x7"], "output": "logits", "linear": {"in_features": 8, "out_features": 5}},
    ],
    "outputs": ["logits"],
    "loss": {"cross_entropy": {"logits": "logits", "target": "label"}},
    "optimizer": {
        "adamw": {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
        "schedule": {"warmup_steps": 2, "total_steps": 10},
    },
    "limits": {"memory_bytes": 2**26, "cpu_s": 5, "wall_s": 5, "max_rows": 64},
    "checkpoint": {"every_steps": 2, "keep": 2},
    "window": 4,
}


def classifier(**changes: Any) -> dict[str, Any]:
    """A whole classifier in one VNode, every kind of parameter in it. `changes` replaces top-level fields."""
    return {**copy.deepcopy(_CLASSIFIER), **changes}


def middle(**changes: Any) -> dict[str, Any]:
    """A VNode in the middle of a chain: two inputs, one of them handed on as it is; one more of integers."""
    document = classifier(**changes)
    document |= {"id": "middle", "downstream": "last", "targets": []}
    document["inputs"] = [
        {"name": "a", "dtype": "DTYPE_F32", "shape": [4]},
        {"name": "b", "dtype": "DTYPE_F32", "shape": [6]},
        {"name": "tag", "dtype": "DTYPE_I64", "shape": []},
    ]
    document["operators"] = [
        {"name": "wide", "inputs": ["a"], "output": "c", "linear": {"in_features": 4, "out_features": 6, "bias": True}},
        {"name": "bend", "inputs": ["c"], "output": "d", "relu": {}},
        {"name": "join", "inputs": ["d", "b"], "output": "e", "add": {}},
    ]
    document["outputs"] = ["e", "b", "tag"]
    del document["loss"]
    return {**document, **changes}


def spoil(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `document` with the field at `path`, as `operators[3].linear`, replaced, added or deleted."""
    spoiled = copy.deepcopy(document)
    steps: list[Any] = [int(step) if step.isdecimal() else step for step in re.findall(r"\w+", path)]
    place: Any = spoiled
    for step in steps[:-1]:
        place = place[step]
    if value is DELETE:
        del place[steps[-1]]
    else:
        place[steps[-1]] = value
    return spoiled


def spec(document: dict[str, Any]) -> spec_pb2.VNodeSpec:
    """The validated spec of a document."""
    return specs.parse_json(json.dumps(document))

"""A small model, for every test of the client."""

from __future__ import annotations

import pytest

from pnode.client.cut import Plan
from pnode.client.model import Model, transformer_classifier
from pnode.v1 import spec_pb2


@pytest.fixture(scope="session")
def model() -> Model:
    """A transformer that computes in no time."""
    return transformer_classifier(tokens=3, in_features=4, features=8, num_blocks=2, num_heads=2, mlp=2, classes=5)


@pytest.fixture(scope="session")
def plan() -> Plan:
    """What its VNodes have in common."""
    adamw = spec_pb2.AdamW(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01)
    return Plan(
        run="run",
        seed=5,
        optimizer=spec_pb2.Optimizer(adamw=adamw, schedule=spec_pb2.Schedule(warmup_steps=2, total_steps=20)),
        limits=spec_pb2.Limits(memory_bytes=64 << 20, cpu_s=10, wall_s=10, max_rows=16),
        window=8,
    )

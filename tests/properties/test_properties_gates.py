"""What models of today have between their linear layers: norms, gates and activations, wherever they are cut."""

from __future__ import annotations

import pytest
from test_properties_cut import MODEL, ROWS, Hashed, Way, evenly, outcome

from pnode.v1 import spec_pb2

KINDS = ("silu", "sigmoid", "tanh", "log_softmax")


def gated(kind: str) -> Hashed:
    """The model with a norm and a gate of its own in front of its first block."""
    first, rest = (
        MODEL.operators[:2],
        [spec_pb2.Operator.FromString(op.SerializeToString()) for op in MODEL.operators[2:]],
    )
    norm = spec_pb2.Operator(
        name="gate.norm", inputs=["position"], output="n", rms_norm=spec_pb2.RmsNorm(features=16, eps=1e-5)
    )
    gate = spec_pb2.Operator(name="gate", inputs=["n"], output="g")
    getattr(gate, kind).SetInParent()
    product = spec_pb2.Operator(name="gate.mul", inputs=["g", "position"], output="p", mul=spec_pb2.Mul())
    for op in rest:
        op.inputs[:] = ["p" if name == "position" else name for name in op.inputs]
    return Hashed(MODEL.inputs, MODEL.targets, (*first, norm, gate, product, *rest), MODEL.loss)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_end_at_one_digest_wherever_they_are_cut(kind: str) -> None:
    model = gated(kind)
    whole = outcome("adamw", Way(), model)
    for place in (2, 3, 4, 5):
        assert outcome("adamw", Way((place,), evenly(4), num_threads=2), model) == whole
    assert outcome("adamw", Way((2, 3, 4, 5), (0, 3, ROWS)), model) == whole
    assert whole != outcome("adamw")

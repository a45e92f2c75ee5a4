"""The operator that passes on: values, gradients and the training around it are those without it, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode.spec import parse_json, to_json
from pnode.vnode.stage import Stage


def relay(profile: str) -> spec_pb2.VNodeSpec:
    """x -> y, and nothing else."""
    return spec_pb2.VNodeSpec(
        id="v",
        run="r",
        profile=profile,
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[3])],
        operators=[spec_pb2.Operator(name="same", inputs=["x"], output="y", identity=spec_pb2.Identity())],
        outputs=["y"],
        downstream="w",
        optimizer=spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.5)),
        limits=spec_pb2.Limits(memory_bytes=1 << 26, cpu_s=60, wall_s=60, max_rows=4),
        checkpoint=spec_pb2.CheckpointPolicy(keep=1),
        window=1,
    )


def model(profile: str, *, through: bool) -> spec_pb2.VNodeSpec:
    """A linear layer and a loss; with the operator before, between (read twice) and after, or without it."""
    linear = spec_pb2.Linear(in_features=3, out_features=3, bias=True)
    same = spec_pb2.Identity()
    steps = [
        spec_pb2.Operator(name="in", inputs=["x"], output="a", identity=same),
        spec_pb2.Operator(name="l", inputs=["a"], output="b", linear=linear),
        spec_pb2.Operator(name="mid", inputs=["b"], output="c", identity=same),
        spec_pb2.Operator(name="sum", inputs=["c", "b"], output="d", add=spec_pb2.Add()),
        spec_pb2.Operator(name="out", inputs=["d"], output="logits", identity=same),
    ]
    if not through:
        steps = [
            spec_pb2.Operator(name="l", inputs=["x"], output="b", linear=linear),
            spec_pb2.Operator(name="sum", inputs=["b", "b"], output="logits", add=spec_pb2.Add()),
        ]
    spec = relay(profile)
    spec.ClearField("operators")
    spec.ClearField("outputs")
    spec.ClearField("downstream")
    spec.operators.extend(steps)
    spec.targets.add(name="label", dtype=tensor_pb2.DTYPE_I64)
    spec.loss.cross_entropy.CopyFrom(spec_pb2.CrossEntropy(logits="logits", target="label"))
    return spec


# -0, a subnormal, the largest, infinities of both signs, a NaN with another payload.
BITS = np.array([0x80000000, 1, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC12345], np.uint32)


@pytest.mark.parametrize("profile", ["samebits-1", "torch"])
def test_bits_and_gradients_pass(profile: str) -> None:
    assert parse_json(to_json(relay(profile))) == relay(profile)
    stage = Stage(relay(profile))
    x = torch.from_numpy(BITS.view(np.float32).copy().reshape(2, 3))
    expected = BITS.copy()
    expected[-1] = 0x7FC00000  # every NaN that is handed out is the canonical one
    given = stage.forward({"x": x})["y"].numpy().view(np.uint32).reshape(-1)
    assert given.tolist() == expected.tolist()
    stage.begin(0, 0, 2, {"x": x}, {})
    gradient = torch.arange(6.0).reshape(2, 3)
    found = stage.finish(0, 0, {"y": gradient}, want_input_gradients=True).input_gradients["x"]
    assert torch.equal(found, gradient)


@pytest.mark.parametrize("profile", ["samebits-1", "torch"])
def test_training_is_what_it_is_without(profile: str) -> None:
    x = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
    label = torch.tensor([0, 1, 2, 1])
    states, gradients = [], []
    for through in (True, False):
        stage = Stage(model(profile, through=through))
        for step in range(3):
            stage.begin(step, 0, 4, {"x": x}, {"label": label})
            gradients.append(stage.finish(step, 0, {}, want_input_gradients=True).input_gradients["x"])
            stage.apply(step, 1)
        states.append({name: value.detach().clone() for name, value in stage._module.parameters.items()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all(torch.equal(one, other) for one, other in zip(gradients[:3], gradients[3:], strict=True))

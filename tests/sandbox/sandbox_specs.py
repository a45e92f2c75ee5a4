"""Small valid specs for the sandbox's tests, and a bigger one whose commands take long."""

from __future__ import annotations

from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import spec as vnode_spec

MIB = 1 << 20


def linear_spec(
    *, features: int = 16, layers: int = 1, max_rows: int = 8, memory_bytes: int = 256 * MIB, cpu_s: float = 60.0,
    wall_s: float = 30.0, profile: str = "samebits-1",
    dtype: tensor_pb2.DType.ValueType = tensor_pb2.DTYPE_F32,
) -> spec_pb2.VNodeSpec:  # fmt: skip
    """`layers` square linear layers and a cross entropy loss over their outputs."""
    operators = [
        spec_pb2.Operator(
            name=f"layer{index}",
            inputs=["x" if index == 0 else f"y{index - 1}"],
            output=f"y{index}",
            linear=spec_pb2.Linear(in_features=features, out_features=features, bias=True),
        )
        for index in range(layers)
    ]
    spec = spec_pb2.VNodeSpec(
        id="v0",
        run="run",
        profile=profile,
        seed=7,
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=dtype, shape=[features])],
        targets=[tensor_pb2.TensorSpec(name="label", dtype=tensor_pb2.DTYPE_I64, shape=[])],
        operators=operators,
        loss=spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits=f"y{layers - 1}", target="label")),
        optimizer=spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.1, momentum=0.9)),
        limits=spec_pb2.Limits(memory_bytes=memory_bytes, cpu_s=cpu_s, wall_s=wall_s, max_rows=max_rows),
        checkpoint=spec_pb2.CheckpointPolicy(keep=2),
        window=4,
    )
    vnode_spec.validate(spec)
    return spec

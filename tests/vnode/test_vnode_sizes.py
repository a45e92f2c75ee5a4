"""Sizes from the spec alone, schedules, and the torch-free half without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from vnode_models import classifier, middle, spec

from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import sizes, state, tensors
from pnode.vnode.schedule import learning_rate


def test_boxes_hold_every_command() -> None:
    middling = spec(middle())
    rows = middling.limits.max_rows
    assert sizes.inbox_bytes(middling) >= rows * (4 * 4 + 6 * 4 + 8)
    assert sizes.outbox_bytes(middling) >= rows * (6 * 4 + 6 * 4 + 8)
    wide = spec(classifier())
    assert sizes.inbox_bytes(wide) >= max(wide.limits.max_rows * (12 * 4 + 8), sizes.state_bytes(wide))
    assert sizes.outbox_bytes(wide) >= max(wide.limits.max_rows * 12 * 4, sizes.state_bytes(wide))
    assert sizes.inbox_bytes(wide) % 4096 == 0


def test_state_bytes_is_the_size_of_the_longest_state() -> None:
    wide = spec(classifier())
    contents = {
        name: memoryview(bytes(4 * tensors.num_elements(shape)))
        for name, shape in state.layout(wide, state.MAX_VERSION).items()
    }
    assert len(state.encode(wide, state.MAX_VERSION, contents)) == sizes.state_bytes(wide)


def test_bytes_and_names_of_dtypes() -> None:
    assert tensors.num_bytes(tensor_pb2.DTYPE_F32, (3, 4)) == 48
    assert tensors.num_bytes(tensor_pb2.DTYPE_I64, ()) == 8
    assert tensors.num_bytes(tensor_pb2.DTYPE_BF16, (2**40, 2**40)) == 2**81
    assert tensors.dtype_name(tensor_pb2.DTYPE_BOOL) == "DTYPE_BOOL"
    assert tensors.dtype_name(99) == "dtype 99"


@pytest.mark.parametrize(
    ("warmup", "total", "wanted"),
    [
        (0, 0, [0.5, 0.5, 0.5, 0.5, 0.5]),
        (2, 0, [0.25, 0.5, 0.5, 0.5, 0.5]),
        (0, 4, [0.5, 0.375, 0.25, 0.125, 0.0]),
        (2, 4, [0.25, 0.5, 0.5, 0.25, 0.0]),
        (2, 2, [0.25, 0.5, 0.0, 0.0, 0.0]),
    ],
)
def test_learning_rates(warmup: int, total: int, wanted: list[float]) -> None:
    schedule = spec_pb2.Schedule(warmup_steps=warmup, total_steps=total)
    optimizer = spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.5), schedule=schedule)
    assert [learning_rate(optimizer, step) for step in range(5)] == wanted


def test_learning_rates_multiply_first() -> None:
    schedule = spec_pb2.Schedule(warmup_steps=3, total_steps=10)
    optimizer = spec_pb2.Optimizer(adamw=spec_pb2.AdamW(lr=0.1), schedule=schedule)
    assert learning_rate(optimizer, 1) == 0.1 * 2.0 / 3.0
    assert learning_rate(optimizer, 6) == 0.1 * 4.0 / 7.0


TORCH_FREE = ("allow_list", "bounds", "chain", "ledger", "liveness", "schedule", "sizes", "spec", "state", "tensors")


def test_the_front_needs_no_torch() -> None:
    imports = "; ".join(f"import pnode.vnode.{module}" for module in TORCH_FREE)
    code = f"{imports}; import sys; sys.exit(any(name in sys.modules for name in ('torch', 'numba', 'samebits')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

"""The digest of a Train request: equal for retries, another for any change in what it computes from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_fakes import fence

from pnode.transport.api import TrainRequest
from pnode.transport.codec import Buffer, Parcel
from pnode.transport.digests import request_digest
from pnode.v1 import tensor_pb2, vnode_pb2


def request() -> TrainRequest:
    meta = tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[2, 1])
    target = tensor_pb2.TensorMeta(name="label", dtype=tensor_pb2.DTYPE_I64, shape=[1])
    head = vnode_pb2.TrainRequest(
        fence=fence(),
        step=9,
        microbatch=1,
        num_microbatches=4,
        batch_rows=64,
        inputs=[meta],
        targets=[target],
    )
    return Parcel(head, [bytes(8), bytes(8)])


def test_the_key_is_no_part_of_it() -> None:
    other = request()
    other.head.fence.CopyFrom(fence("other"))
    other.head.step, other.head.microbatch = 10, 2
    assert request_digest(other) == request_digest(request())
    assert len(request_digest(other)) == 16


def as_target(message: TrainRequest) -> None:
    message.head.targets.insert(0, message.head.inputs.pop())


def first_dim(message: TrainRequest) -> None:
    message.head.inputs[0].shape[0] = -(2**63)


def contents(message: TrainRequest) -> list[Buffer]:
    assert isinstance(message.payloads, list)
    return message.payloads


def boundary(message: TrainRequest) -> None:
    contents(message)[:] = [bytes(9), bytes(7)]


def payload(message: TrainRequest) -> None:
    contents(message)[1] = bytes(7) + b"\x01"


CHANGES: dict[str, Callable[[TrainRequest], object]] = {
    "batch_rows": lambda r: setattr(r.head, "batch_rows", 65),
    "num_microbatches": lambda r: setattr(r.head, "num_microbatches", 5),
    "want_input_gradients": lambda r: setattr(r.head, "want_input_gradients", True),
    "name": lambda r: setattr(r.head.inputs[0], "name", "y"),
    "dtype": lambda r: setattr(r.head.inputs[0], "dtype", tensor_pb2.DTYPE_I32),
    "rank": lambda r: r.head.inputs[0].shape.extend([1]),
    "extreme dimension": first_dim,
    "input becomes target": as_target,
    "one more payload": lambda r: contents(r).extend([b""]),
    "payload": payload,
    "boundary of payloads": boundary,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_is_noticed(change: Callable[[TrainRequest], object]) -> None:
    other = request()
    change(other)
    assert request_digest(other) != request_digest(request())


TENSORS = st.lists(
    st.builds(
        lambda name, shape: tensor_pb2.TensorMeta(name=name, shape=shape),
        st.text(max_size=2),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2),
    ),
    max_size=2,
)
REQUESTS = st.builds(
    lambda inputs, targets, payloads: Parcel(vnode_pb2.TrainRequest(inputs=inputs, targets=targets), payloads),
    TENSORS,
    TENSORS,
    st.lists(st.binary(max_size=3), max_size=3),
)


@settings(deadline=None)
@given(REQUESTS, REQUESTS)
def test_equal_digests_mean_equal_requests(one: TrainRequest, other: TrainRequest) -> None:
    assert (request_digest(one) == request_digest(other)) == (one == other)

"""A Train whose tensors are not those of the spec is refused before the node keeps anything for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from node_world import ROWS, World

from pnode.client.batch import from_array
from pnode.errors import BadRequest
from pnode.transport.codec import Parcel
from pnode.transport.tensors import metas, payloads
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.vnode.ledger import Ledger
from pnode.vnode.tensors import TensorBytes

Shape = tuple[int, ...]


def tensor(name: str, shape: Shape, dtype: Any = np.float32) -> TensorBytes:
    return from_array(name, np.zeros(shape, dtype))


TOKENS, LABEL = tensor("tokens", (ROWS, 3, 4)), tensor("label", (ROWS,), np.int64)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    ("inputs", "targets", "match"),
    [
        ([tensor("other", (ROWS, 3, 4))], [LABEL], "input 'tokens' is missing"),
        ([TOKENS, tensor("other", (ROWS, 3, 4))], [LABEL], "input 'other' is not one of"),
        ([tensor("tokens", (ROWS, 3, 5))], [LABEL], r"expected \[rows, \*\[3, 4\]\], got \[8, 3, 5\]"),
        ([tensor("tokens", (ROWS, 12))], [LABEL], r"expected \[rows, \*\[3, 4\]\], got \[8, 12\]"),
        ([TensorBytes("tokens", tensor_pb2.DTYPE_F32, (), bytes(4))], [LABEL], r"got \[\]"),
        ([tensor("tokens", (ROWS, 3, 4), np.int64)], [LABEL], "expected DTYPE_F32, got DTYPE_I64"),
        ([tensor("tokens", (9, 3, 4))], [tensor("label", (9,), np.int64)], "expected 1 to 8 rows .* got 9"),
        ([tensor("tokens", (0, 3, 4))], [tensor("label", (0,), np.int64)], "expected 1 to 8 rows .* got 0"),
        ([TOKENS], [tensor("label", (9, 9), np.int64)], r"648 bytes of targets for 8 rows|expected \[rows"),
        ([TOKENS], [LABEL, tensor("more", (1,), np.uint8)], "65 bytes of targets for 8 rows|'more' is not one of"),
    ],
)
def test_what_the_spec_does_not_say_is_not_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stages: int,
    inputs: list[TensorBytes],
    targets: list[TensorBytes],
    match: str,
) -> None:
    def admit(*_: object) -> NoReturn:
        raise AssertionError("kept")

    world = World(tmp_path, ("a", "b", "c")[:stages])
    monkeypatch.setattr(Ledger, "admit", admit)
    head = vnode_pb2.TrainRequest(
        fence=world.fence(world.first),
        num_microbatches=1,
        batch_rows=ROWS,
        inputs=metas(inputs),
        targets=metas(targets),
    )
    with pytest.raises(BadRequest, match=match):
        world.train(Parcel(head, payloads([*inputs, *targets])))


def test_targets_are_judged_where_the_loss_is(tmp_path: Path) -> None:
    world = World(tmp_path, ("a",))
    for label, match in [
        (tensor("label", (ROWS - 1,), np.int64), r"different numbers of rows: \[7, 8\]"),
        (tensor("other", (ROWS,), np.int64), "target 'label' is missing"),
        (tensor("label", (ROWS,), np.int32), "expected DTYPE_I64, got DTYPE_I32"),
    ]:
        head = vnode_pb2.TrainRequest(
            fence=world.fence(world.first),
            num_microbatches=1,
            batch_rows=ROWS,
            inputs=metas([TOKENS]),
            targets=metas([label]),
        )
        with pytest.raises(BadRequest, match=match):
            world.train(Parcel(head, payloads([TOKENS, label])))
    assert not world.homes[world.first].began[world.first].is_set()

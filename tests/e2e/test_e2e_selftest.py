"""A node whose samebits computes other bits than the golden ones says so, and hosts no VNode that needs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pnode.devnet.child import PNODE, Child, end_all
from pnode.errors import SpecError
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode
from pnode.v1 import node_pb2, spec_pb2, tensor_pb2, vnode_pb2
from tests.e2e.e2e_operator import pool_to

# A cold kernel cache is compiled by the first node that starts.
START_S = 240.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def other_samebits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that comes first, and expects another digest of one operator."""
    found = find_spec("samebits")
    assert found is not None
    assert found.origin is not None
    copy = tmp_path / "other" / "samebits"
    shutil.copytree(Path(found.origin).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    golden = copy / "selftest" / "golden.json"
    digests = json.loads(golden.read_text())
    digests["relu"] = digests["gelu"]
    golden.write_text(json.dumps(digests))
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    return copy


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    end_all(started, 20.0)


def start(children: list[Child], folder: Path, name: str, *arguments: str) -> Child:
    common = (f"store.url=file://{folder}/store", f"node.data_dir={folder}/{name}")
    child = Child(name, [*PNODE, *common, *arguments], folder / f"{name}.log")
    children.append(child)
    child.wait_serving(START_S)
    return child


def request() -> node_pb2.AllocateRequest:
    """One relu, which is one too many."""
    operator = spec_pb2.Operator(name="relu", inputs=["x"], output="y", relu=spec_pb2.Relu())
    spec = spec_pb2.VNodeSpec(
        id="v", run="r", profile="samebits-1", operators=[operator], window=1,
        inputs=[tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[4])],
        targets=[tensor_pb2.TensorSpec(name="label", dtype=tensor_pb2.DTYPE_I64)],
        loss=spec_pb2.Loss(cross_entropy=spec_pb2.CrossEntropy(logits="y", target="label")),
        optimizer=spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.1)),
        limits=spec_pb2.Limits(memory_bytes=1 << 28, cpu_s=60, wall_s=60, max_rows=4),
        checkpoint=spec_pb2.CheckpointPolicy(keep=1),
    )  # fmt: skip
    return node_pb2.AllocateRequest(spec=spec, fence=vnode_pb2.Fence(run="r", vnode="v", epoch=1, generation=1))


def test_a_node_that_computes_other_bits_hosts_none_that_need_them(
    children: list[Child], tmp_path: Path, other_samebits: Path
) -> None:
    orchestrator = start(children, tmp_path, "orchestrator", "role=orchestrator", "orchestrator.port=0")
    joining = f"orchestrator.address={orchestrator.address}"
    node = start(children, tmp_path, "node", joining, "node.port=0", "device=cpu")
    assert "VNodes are refused: the self-test of samebits-1 does not give the golden digests: relu" in node.tail(20)
    with pool_to(node, orchestrator) as pool:
        remote = RemoteNode(pool, node.address)
        about = remote.inspect(node_pb2.InspectRequest(), Deadline.after(10)).capabilities
        assert [name.split("/")[0] for name in about.numerics_classes] == ["torch"]
        assert len(about.samebits_digest) == 64
        with pytest.raises(SpecError, match=r"'samebits-1': the self-test of samebits-1 does not give .*: relu"):
            remote.allocate(request(), Deadline.after(10))


def test_the_role_says_which_operator_differs(other_samebits: Path) -> None:
    command = [sys.executable, *PNODE, "role=selftest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "samebits.selftest: relu does not give the golden digest"
    assert json.loads(done.stdout)["profile"] == "samebits-1"

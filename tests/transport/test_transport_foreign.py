"""A stock client in another language reads and writes our messages: Node.js, with what its users install for gRPC."""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from transport_clients import address_of
from transport_fakes import FakeVNodes, fence

from pnode.transport.codec import Parcel, decode, encode
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.vnode.tensors import ITEM_BYTES, dtype_name

ROOT = Path(__file__).parents[2]
FOREIGN = Path(__file__).parent / "foreign"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client with what it needs, at the versions of its lock file."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed here")
    folder = tmp_path_factory.mktemp("foreign")
    for name in ("package.json", "package-lock.json", "client.js"):
        shutil.copy(FOREIGN / name, folder)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=folder, check=True, timeout=200)
    return folder / "client.js"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_client_in_javascript_reads_and_writes_what_we_do(serve: Callable[..., Any], client: Path) -> None:
    contents = [bytes(range(48 * index % 256)) * 2 for index in range(1, len(ITEM_BYTES) + 1)]
    metas = [
        tensor_pb2.TensorMeta(name=f"x{dtype}", dtype=dtype, shape=[len(content) // ITEM_BYTES[dtype], 1])  # type: ignore[arg-type]  # from the table
        for dtype, content in zip(sorted(ITEM_BYTES), contents, strict=True)
    ]
    asked = Parcel(vnode_pb2.ForwardRequest(fence=fence(), inputs=metas), contents)
    large = Parcel(vnode_pb2.ForwardRequest(fence=fence(), inputs=metas[:1]), [bytes(range(250)) * 40])
    whole = encode(large, 1 << 20)
    told = {
        "payloads": [b64encode(content).decode() for content in contents],
        "metas": [{"name": meta.name, "dtype": dtype_name(meta.dtype), "shape": list(meta.shape)} for meta in metas],
        "whole": b64encode(whole).decode(),
        "digest": b64encode(xxhash.xxh3_128_digest(whole)).decode(),
    }
    fake = FakeVNodes()
    command = ["node", str(client), address_of(serve(vnodes=fake)), str(ROOT / "protos"), json.dumps(told)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert [request for _, request, _ in fake.seen] == [asked, large]
    assert [b64decode(payload) for payload in found["payloads"]] == contents
    assert [(each["name"], each["dtype"]) for each in found["outputs"]] == [
        (meta.name, dtype_name(meta.dtype)) for meta in metas
    ]
    reply = b"".join(map(b64decode, found["pieces"]))
    assert int(found["num_bytes"]) == len(reply)
    assert decode(vnode_pb2.ForwardReply, reply) == FakeVNodes().forward(large, fake.seen[1][2])

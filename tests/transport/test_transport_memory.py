"""A flood of large messages against a real process: its memory stays under what `in_flight_bytes` promises."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pnode.errors import Busy
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteVNode
from pnode.v1 import vnode_pb2

MIB = 2**20
MESSAGE = 8 * MIB
CLIENTS = 12
CALLS = 3
# Each call is held for a moment by its handler, as it would be by a busy worker.
SERVER = """
import sys, threading
sys.path[:0] = sys.argv[2:]
from transport_fakes import FakeVNodes
from pnode.transport.server import make_server
from pnode.transport.codec import Parcel
from pnode.v1 import vnode_pb2
class Busy(FakeVNodes):
    def forward(self, request, deadline):
        threading.Event().wait(0.2)
        return Parcel(vnode_pb2.ForwardReply(version=len(request.payloads[0])))
server = make_server(vnodes=Busy(), in_flight_bytes=int(sys.argv[1]), max_message_bytes=8 * 2**20 + 4096, receive_s=2.0)
server.start()
print(server.port, flush=True)
sys.stdin.read()
server.stop(0.0)
"""


def resident(pid: int, field: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def flooded(in_flight_bytes: int) -> tuple[int, int]:
    """By how much the server grew at most under a flood, and how many calls were answered."""
    paths = [path for path in sys.path if path]
    command = [sys.executable, "-c", SERVER, str(in_flight_bytes), *paths]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = f"127.0.0.1:{int(process.stdout.readline())}"
            begin = resident(process.pid, "VmRSS")
            with ThreadPoolExecutor(CLIENTS) as threads:
                answered = sum(threads.map(client, [address] * CLIENTS))
            return resident(process.pid, "VmHWM") - begin, answered
        finally:
            process.kill()


def client(address: str) -> int:
    """Calls with a connection of its own, without a pause; how many were answered."""
    answered = 0
    request = Parcel(vnode_pb2.ForwardRequest(), [bytes(MESSAGE)])
    with ChannelPool(max_message_bytes=2 * MESSAGE) as pool:
        for _ in range(CALLS):
            try:
                reply = RemoteVNode(pool, address).forward(request, Deadline.after(30.0))
            except Busy:
                continue
            assert reply.head.version == MESSAGE
            answered += 1
    return answered


@pytest.mark.timeout(120)
def test_a_flood_of_large_messages_stays_within_its_budget() -> None:
    budget = 4 * MESSAGE
    grown, answered = flooded(budget)
    unbounded, _ = flooded(1024 * MIB)
    assert answered > CLIENTS, "a flood is slowed down, not shut out"
    # gRPC's and Python's bytes are in the budget; protobuf's copies of them come on top, and what malloc keeps.
    bound = 2 * budget + 64 * MIB
    assert grown < bound < unbounded

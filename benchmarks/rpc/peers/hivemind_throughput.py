"""hivemind's own throughput benchmark at a fixed number of rows in flight. Runs in the peers' own environment.

    hivemind_throughput.py EXPERTS CLIENTS ROWS CALLS forward|train

As in its repository's benchmark_throughput.py: one server of `ffn` experts of hidden size 1024 with Adam, a process for
each client, each calling an expert drawn at random; `train` calls backward, too, in which the expert's optimizer steps.
ROWS are of one client's batch. Each client warms up with one call before all begin at once.
"""

from __future__ import annotations

import multiprocessing as mp
import random
import sys
import time
from multiprocessing.synchronize import Barrier

import torch
from answering import say
from hivemind.dht import DHT
from hivemind.moe import get_experts
from hivemind.moe.server.server import background_server

FEATURES = 1024


def client(addrs: list[str], uids: list[str], index: int, rows: int, calls: int, train: bool, start: Barrier) -> None:
    """One client's calls."""
    torch.set_num_threads(1)
    dht = DHT(initial_peers=addrs, start=True, client_mode=True)
    experts = get_experts(dht, uids)
    drawn = random.Random(index)
    x = torch.randn(rows, FEATURES, requires_grad=train)

    def call() -> None:
        with torch.set_grad_enabled(train):
            y = drawn.choice(experts)(x)
            if train:
                y.sum().backward()

    call()
    start.wait()
    for _ in range(calls):
        call()
    start.wait()
    dht.shutdown()


def main(num_experts: int, num_clients: int, rows: int, calls: int, kind: str) -> None:
    """Start the server and the clients; tell the rows in a second."""
    uids = [f"expert.{index}" for index in range(num_experts)]
    with background_server(expert_uids=uids, expert_cls="ffn", hidden_dim=FEATURES, device="cpu",
                           num_handlers=max(1, num_clients // 2)) as server:  # fmt: skip
        # A client that failed would keep all the others waiting.
        start = mp.Barrier(num_clients + 1, timeout=300)
        addrs = [str(address) for address in server.addrs]
        clients = [
            mp.Process(target=client, args=(addrs, uids, index, rows, calls, kind == "train", start))
            for index in range(num_clients)
        ]
        for each in clients:
            each.start()
        start.wait()
        started = time.perf_counter()
        start.wait()
        seconds = time.perf_counter() - started
        say(rows_per_s=num_clients * calls * rows / seconds, seconds=seconds)
        for each in clients:
            each.join(10)


if __name__ == "__main__":
    num_experts, num_clients, rows, calls = map(int, sys.argv[1:5])
    main(num_experts, num_clients, rows, calls, sys.argv[5])

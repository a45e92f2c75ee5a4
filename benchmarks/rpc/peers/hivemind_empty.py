"""hivemind's expert `nop`, called without gradients: hivemind_empty.py BYTES. Runs in the peers' own environment.

The server is a process of its own, as hivemind's own benchmark has it.
"""

from __future__ import annotations

import sys

import torch
from answering import answer
from hivemind.dht import DHT
from hivemind.moe import get_experts
from hivemind.moe.server.server import background_server

FEATURES = 512


def main(num_bytes: int) -> None:
    """Serve and measure until stdin ends."""
    with background_server(expert_uids=["expert.0"], expert_cls="nop", hidden_dim=FEATURES, device="cpu") as server:
        dht = DHT(initial_peers=server.addrs, start=True)
        (expert,) = get_experts(dht, ["expert.0"])
        x = torch.randn(num_bytes // (4 * FEATURES), FEATURES)

        def call() -> None:
            with torch.no_grad():
                assert expert(x).nbytes == num_bytes

        answer(call)
        dht.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))

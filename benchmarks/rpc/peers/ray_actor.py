"""A Ray actor that gives back the array it is called with: ray_actor.py BYTES. Runs in the peers' own environment."""

from __future__ import annotations

import sys

import numpy as np
import ray
from answering import answer


class Echo:
    """One actor, in a worker process of Ray's."""

    def call(self, x: np.ndarray) -> np.ndarray:
        """The array again."""
        return x


def main(num_bytes: int) -> None:
    """Serve and measure until stdin ends."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    actor = ray.remote(Echo).remote()
    x = np.random.default_rng(0).standard_normal((num_bytes // 2048, 512), np.float32)

    def call() -> None:
        assert ray.get(actor.call.remote(x)).nbytes == num_bytes

    answer(call)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))

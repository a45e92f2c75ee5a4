"""Capabilities are read from the system as it is; limits of a container win over the machine's."""

from __future__ import annotations

import os
from pathlib import Path

from pnode.node import capabilities


def test_instruction_sets_come_from_the_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu sse4_2 avx avx2 fma avx512f\n")
    assert capabilities.instruction_sets(cpuinfo) == ["sse4_2", "avx", "avx2", "fma", "avx512f"]
    cpuinfo.write_text("Features\t: fp asimd sve\n")
    assert capabilities.instruction_sets(cpuinfo) == ["asimd", "sve"]
    assert capabilities.instruction_sets(tmp_path / "missing") == []


def test_everything_in_one_message() -> None:
    probed = {
        "samebits": {"digest": "ab12", "differing": []},
        "gpus": [{"name": "G", "memory_bytes": 5, "compute_capability": "9.0"}],
        "versions": {"torch": "2.13.0+cpu"},
        "numerics_classes": ["samebits-1", "torch/2.13.0+cpu/cpu/AVX2"],
    }
    message = capabilities.capabilities(probed, device="cpu", vnode_memory_bytes=7, max_vnodes=3, layers=["seccomp"])
    assert list(message.sandbox_layers) == ["seccomp"]
    assert message.samebits_digest == "ab12"
    assert capabilities.refusals(probed) == {}
    assert message.num_cores == len(os.sched_getaffinity(0))
    assert message.gpus[0].name == "G"
    assert message.versions["torch"] == "2.13.0+cpu"
    assert {"pnode", "python", "numba"} <= set(message.versions)
    assert list(message.numerics_classes) == probed["numerics_classes"]
    assert (message.vnode_memory_bytes, message.max_vnodes, message.device) == (7, 3, "cpu")

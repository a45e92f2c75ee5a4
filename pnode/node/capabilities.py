"""What this machine can do, as the orchestrator is told. The front asks the system; torch is asked in the sandbox."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pnode.node.budget import free_bytes, machine_bytes
from pnode.v1 import node_pb2

# The instruction sets that kernels look for; cpuinfo lists a hundred more that say nothing about speed here.
_INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
SAMEBITS = "samebits-1"
_PACKAGES = ("pnode", "torch", "numba", "numpy", "grpcio", "safetensors")


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of the interesting instruction sets that this processor has."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return [name for name in _INSTRUCTION_SETS if name in flags]


def capabilities(
    probed: Mapping[str, Any], *, device: str, vnode_memory_bytes: int, max_vnodes: int, layers: Iterable[str]
) -> node_pb2.Capabilities:
    """All of it as one message. `probed` is what the sandbox reported of torch."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    versions["python"] = platform.python_version()
    versions |= {str(name): str(value) for name, value in probed.get("versions", {}).items()}
    return node_pb2.Capabilities(
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=machine_bytes(),
        machine=platform.machine(),
        instruction_sets=instruction_sets(),
        gpus=[node_pb2.Gpu(**gpu) for gpu in probed.get("gpus", [])],
        versions=versions,
        numerics_classes=[str(name) for name in probed.get("numerics_classes", [])],
        device=device,
        vnode_memory_bytes=vnode_memory_bytes,
        max_vnodes=max_vnodes,
        sandbox_layers=layers,
        samebits_digest=str(probed.get("samebits", {}).get("digest", "")),
    )


def refusals(probed: Mapping[str, Any]) -> dict[str, str]:
    """Why this node offers no samebits-1, by profile; empty where it does."""
    if SAMEBITS in probed.get("numerics_classes", []):
        return {}
    differing = ", ".join(map(str, probed.get("samebits", {}).get("differing", []))) or "no self-test was run"
    return {SAMEBITS: f"the self-test of {SAMEBITS} does not give the golden digests: {differing}"}


def load(*, num_vnodes: int, vnode_memory_bytes: int, granted_memory_bytes: int, calls_in_flight: int) -> node_pb2.Load:
    """How busy the machine is now."""
    return node_pb2.Load(
        num_vnodes=num_vnodes,
        vnode_memory_bytes=vnode_memory_bytes,
        cpu_percent=psutil.cpu_percent(interval=None),
        available_memory_bytes=free_bytes(),
        granted_memory_bytes=granted_memory_bytes,
        calls_in_flight=calls_in_flight,
    )

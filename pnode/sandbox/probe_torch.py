"""What torch finds on this machine, from inside a child made for the question: it may wake a GPU's driver."""

from __future__ import annotations

import numba
import numpy as np
import samebits
import torch
from samebits import selftest

from pnode.vnode import torch_profile


def report() -> dict[str, object]:
    """`versions`, `gpus`, `cpu_capability`, the numerics classes by device, and the self-test's findings."""
    gpus = _gpus()
    classes: dict[str, object] = {"cpu": torch_profile.numerics_class("cpu")}
    if gpus:
        classes["cuda"] = torch_profile.numerics_class("cuda")
    versions = {"torch": torch.__version__, "numba": numba.__version__, "numpy": np.__version__}
    return {
        "versions": {**versions, "samebits": samebits.PROFILE},
        "gpus": gpus,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_classes": classes,
        "samebits": _selftest(),
    }


def _selftest() -> dict[str, object]:
    """The digest, and the operators that do not give the golden one. The zygote itself stays as it is."""
    torch.set_num_threads(1)
    report = selftest.run()
    return {"digest": report.digest, "differing": report.differing(selftest.golden().operators)}


def _gpus() -> list[dict[str, object]]:
    """Those that work. One that torch lists and cannot open is none."""
    try:
        return [_gpu(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    except RuntimeError:
        return []


def _gpu(index: int) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
    }

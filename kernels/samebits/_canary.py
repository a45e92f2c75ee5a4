"""The canary: raise where this thread's arithmetic is not IEEE-754 binary32, before a kernel computes with it.

Flush-to-zero and rounding modes belong to a thread and leak in from outside: `torch.set_flush_denormal(True)`, a
library built with -ffast-math; new threads inherit them. Every call of a kernel asks first; it costs about 0.1 us.
"""

from __future__ import annotations

import numpy as np

from samebits._compile import guard_kernels_with, kernel
from samebits._intrinsics import bits32, fma32, load32

# Read from memory, so that no compiler computes the answers beforehand.
_VALUES = np.array(
    [2.0**-130, 1.0, 2.0**-126, 0.5, 1 + 2.0**-23, 2.0**-24, 1 + 2.0**-12, -(1 + 2.0**-11)], dtype=np.float32
)
VALUES_ADDRESS = _VALUES.ctypes.data
_SUBNORMAL_BITS, _HALVED_BITS = 0x00080000, 0x00400000
_ONE_BITS, _EVEN_BITS, _FUSED_BITS = 0x3F800000, 0x3F800002, 0x33800000
_FLUSHES, _ROUNDS, _SPLITS = 1, 2, 4


@kernel("int64(intp)")
def probe(values: int) -> int:
    """Sums of faults: 1 subnormals are flushed, 2 rounding is not to nearest even, 4 fma rounds twice."""
    subnormal, one, smallest, half = load32(values, 0), load32(values, 1), load32(values, 2), load32(values, 3)
    above, tiny, factor, minus = load32(values, 4), load32(values, 5), load32(values, 6), load32(values, 7)
    faults = 0
    if bits32(subnormal * one) != _SUBNORMAL_BITS or bits32(smallest * half) != _HALVED_BITS:
        faults += _FLUSHES
    if bits32(one + tiny) != _ONE_BITS or bits32(above + tiny) != _EVEN_BITS:
        faults += _ROUNDS
    if bits32(fma32(factor, factor, minus)) != _FUSED_BITS:
        faults += _SPLITS
    return faults


def canary() -> None:
    """Raise RuntimeError unless this thread computes as the contract says."""
    refuse(probe.unguarded(VALUES_ADDRESS))


def refuse(faults: int) -> None:
    """Raise RuntimeError for faults that `probe` found, in this thread or in one that worked for it."""
    if faults:
        names = {
            _FLUSHES: "subnormal numbers are flushed to zero (torch.set_flush_denormal, or a -ffast-math library)",
            _ROUNDS: "results are not rounded to nearest even",
            _SPLITS: "fused multiply-add rounds twice",
        }
        found = "; ".join(text for bit, text in names.items() if faults & bit)
        raise RuntimeError(f"samebits: this thread's arithmetic would change results: {found}")


guard_kernels_with(canary)

"""Philox4x32-10 in numpy integers, and permutations from it: the same on every host, without torch.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). Keys and counters as in the numerics
contract, rule 7: key = seed XOR site, site = first 8 bytes of SHA-256 of a path, counter = (block, sample, step, 0);
word w of element e is lane e % 4 of block e // 4.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def site(path: str) -> int:
    """The 64-bit name of a use of randomness."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little")


def philox(counter: tuple[Words, Words, Words, Words], key: int) -> tuple[Words, Words, Words, Words]:
    """Four 32-bit words for each counter, as uint64 arrays that hold 32-bit values. key: 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(num: int, *, seed: int, path: str, step: int = 0, sample: int = 0) -> Words:
    """`num` words of 32 bits for one sample at one step."""
    blocks = np.arange(-(-num // 4), dtype=np.uint64)
    same = np.ones_like(blocks)
    lanes = philox((blocks, same * np.uint64(sample), same * np.uint64(step), same * np.uint64(0)), seed ^ site(path))
    return np.stack(lanes, axis=1).reshape(-1)[:num]


def permutation(num: int, *, seed: int, path: str, step: int = 0) -> npt.NDArray[np.int64]:
    """0 .. num-1 in a random order: sorted by 64 bits each (two words, the first one low), equal ones by index."""
    drawn = words(2 * num, seed=seed, path=path, step=step)
    return np.argsort(drawn[0::2] | (drawn[1::2] << _SHIFT), kind="stable")

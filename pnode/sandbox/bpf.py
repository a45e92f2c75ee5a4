"""Seccomp filters in classic BPF: rules that allow, one after the other, and a default for all else.

Each rule is a block that either returns or falls through to the next, so no jump ever leaves its block:

    load the number of the call; another one than mine? -> end of block
    for each condition: load an argument, mask it; another value than wanted? -> end of block
    return
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

# struct seccomp_data { int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_LOAD, _AND, _JUMP_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_WORD = 0xFFFFFFFF


def refuse_with(number: int) -> int:
    """The action that lets a call fail with this errno."""
    return _ERRNO | number


class Where(NamedTuple):
    """A condition: argument `position`, masked, is `value`. Of its 64 bits the low word, or the high one."""

    position: int
    value: int
    mask: int = _WORD
    high: bool = False


class Rule(NamedTuple):
    """What happens to the call `number` where all conditions hold."""

    number: int
    conditions: tuple[Where, ...] = ()
    action: int = ALLOW


def program(architecture: int, rules: Iterable[Rule], default: int) -> bytes:
    """The filter, as an array of struct sock_filter. Calls of another architecture end the process."""
    code = [*_load(_ARCHITECTURE), _equal(architecture, otherwise=0, then=1), _return(KILL_PROCESS)]
    for rule in rules:
        code += _block(rule)
    code.append(_return(default))
    return b"".join(code)


@cache
def _block(rule: Rule) -> list[bytes]:
    body: list[bytes] = [_return(rule.action)]
    for where in reversed(rule.conditions):
        # Little-endian, as both architectures are: the low word comes first.
        load = _load(_ARGUMENTS + 8 * where.position + 4 * where.high)
        body = [*load, _instruction(_AND, where.mask), _equal(where.value, otherwise=len(body)), *body]
    return [*_load(_NUMBER), _equal(rule.number, otherwise=len(body)), *body]


def _load(offset: int) -> list[bytes]:
    return [_instruction(_LOAD, offset)]


def _equal(value: int, *, otherwise: int, then: int = 0) -> bytes:
    """Skip `then` instructions where the loaded word is `value`, else `otherwise`."""
    return _instruction(_JUMP_EQUAL, value, then, otherwise)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, action)


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k & _WORD)

"""The versions of the wire that this process speaks, and what is said where two processes have none in common."""

from __future__ import annotations

from pnode.errors import BadRequest, ProtocolMismatch

OLDEST, NEWEST = 1, 1
# Callers name their range in it, as 1-1. Clients of others need not: they speak the first version.
HEADER = "pnode-protocol"
HEADER_VALUE = f"{OLDEST}-{NEWEST}"


def agreed(oldest: int, newest: int, who: str) -> int:
    """The newest version that both speak. Raises ProtocolMismatch, saying which side is too old."""
    if oldest <= NEWEST and newest >= OLDEST:
        return min(newest, NEWEST)
    theirs, ours = _span(oldest, newest), _span(OLDEST, NEWEST)
    if newest < OLDEST:
        raise ProtocolMismatch(f"{who} is too old: it speaks wire protocol {theirs}, this process {ours}")
    raise ProtocolMismatch(f"this process is too old: it speaks wire protocol {ours}, {who} {theirs}")


def check_header(value: str) -> None:
    """The range of a caller. Raises BadRequest, ProtocolMismatch."""
    oldest, _, newest = value.partition("-")
    if not (oldest.isascii() and oldest.isdecimal() and newest.isascii() and newest.isdecimal() and len(value) < 16):
        raise BadRequest(f"{HEADER} {value[:40]!r} is no range of versions, as {HEADER_VALUE}")
    agreed(int(oldest), int(newest), "the caller")


def _span(oldest: int, newest: int) -> str:
    return str(newest) if oldest == newest else f"{oldest} to {newest}"

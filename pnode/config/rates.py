"""`devnet.faults`: how often each fault befalls a call, as `drop:0.05,delay:0.1`, checked."""

from __future__ import annotations

import math

# kill is of a step, the others are of a call.
KINDS = ("drop", "duplicate", "delay", "reorder", "kill")
# Above this nothing would ever get through.
_MOST = 0.5


def fault_rates(text: str) -> dict[str, float]:
    """The rate of every kind, 0 for one that is not named. Raises ValueError in words that follow "key: "."""
    rates = dict.fromkeys(KINDS, 0.0)
    if text in ("none", ""):
        return rates
    seen = set()
    for part in text.split(","):
        kind, colon, amount = part.strip().partition(":")
        if kind not in KINDS or not colon:
            raise ValueError(f"expected none, or some of {', '.join(KINDS)} as drop:0.05,delay:0.1, got {part[:60]!r}")
        if kind in seen:
            raise ValueError(f"{kind} is there twice")
        seen.add(kind)
        rates[kind] = _rate(kind, amount)
    return rates


def _rate(kind: str, amount: str) -> float:
    try:
        rate = float(amount)
    except ValueError:
        rate = math.nan
    if not 0.0 <= rate <= _MOST:
        raise ValueError(f"expected a rate of {kind} from 0 to {_MOST}, got {amount[:60]!r}")
    return rate

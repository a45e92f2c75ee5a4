"""The lease of a run: one driver at a time may move it. Pure: the caller brings the time and the fresh id."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pnode.errors import LeaseLost

# Lives of drivers that are remembered, so that a late Submit of theirs is known.
_MAX_PAST = 64


@dataclass
class Lease:
    """Held by `holder` under `id` until `expires_s` of the orchestrator's clock.

    An expired lease that nobody else took still counts: its holder was slow, not replaced. A holder may die and come
    back; `nonce` names its life, and the earlier ones are fenced at once.
    """

    holder: str
    id: str
    expires_s: float
    nonce: str = ""
    _past: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_PAST))

    def take(self, holder: str, fresh_id: str, now: float, lease_s: float, nonce: str = "") -> None:
        """Renew for the same life of the same holder, pass to a later life of it, or to another holder after expiry.

        Raises LeaseLost while another holder's lease is live, saying for how long, and for a life that has passed:
        its Submit was under way for long.
        """
        if nonce in self._past:
            raise LeaseLost(f"{self.holder!r} holds this run by a later Submit")
        live = now < self.expires_s
        if live and holder != self.holder:
            left_s = self.expires_s - now
            raise LeaseLost(f"{self.holder!r} holds this run for another {left_s:.1f} s", retry_after_s=left_s)
        if not live or nonce != self.nonce:
            if self.nonce and nonce != self.nonce:
                self._past.append(self.nonce)
            self.holder, self.id, self.nonce = holder, fresh_id, nonce
        self.expires_s = now + lease_s

    def renew(self, lease: str, now: float, lease_s: float) -> None:
        """Raises LeaseLost for any other id."""
        self.check(lease)
        self.expires_s = now + lease_s

    def check(self, lease: str) -> None:
        """Raises LeaseLost for any other id."""
        if lease != self.id:
            raise LeaseLost(f"this lease is not the run's: {self.holder!r} holds it now")

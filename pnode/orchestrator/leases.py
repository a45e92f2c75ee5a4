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

    A name proves nothing, so a holder is also whoever the network knows it as: `owner`, the UUID of its key. Where that
    is empty, nobody could be told from anybody else, and the name is taken at its word. Refusals name neither.
    """

    holder: str
    id: str
    expires_s: float
    nonce: str = ""
    owner: str = ""
    _past: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_PAST))

    def take(self, holder: str, fresh_id: str, now: float, lease_s: float, nonce: str = "", *, owner: str = "") -> None:
        """Renew for the same life of the same holder, pass to a later life of it, or to another holder after expiry.

        Raises LeaseLost while another holder's lease is live, saying for how long, and for a life that has passed:
        its Submit was under way for long.
        """
        if nonce in self._past:
            raise LeaseLost("a later Submit holds this run")
        live = now < self.expires_s
        if live and (holder, owner) != (self.holder, self.owner):
            left_s = self.expires_s - now
            raise LeaseLost(f"another driver holds this run for another {left_s:.1f} s", retry_after_s=left_s)
        if not live or nonce != self.nonce:
            if self.nonce and nonce != self.nonce:
                self._past.append(self.nonce)
            self.holder, self.owner, self.id, self.nonce = holder, owner, fresh_id, nonce
        self.expires_s = now + lease_s

    def renew(self, lease: str, now: float, lease_s: float, *, owner: str = "") -> None:
        """Raises LeaseLost for any other id, and for anybody else who names this one."""
        self.check(lease, owner=owner)
        self.expires_s = now + lease_s

    def check(self, lease: str, *, owner: str = "") -> None:
        """Raises LeaseLost for any other id, and for anybody else who names this one."""
        if (lease, owner) != (self.id, self.owner):
            raise LeaseLost("this lease is not the run's, or not the caller's: another Submit took the run since")

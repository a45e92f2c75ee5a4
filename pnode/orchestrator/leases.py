"""The lease of a run: one driver at a time may move it. Pure: the caller brings the time and the fresh id."""

from __future__ import annotations

from dataclasses import dataclass

from pnode.errors import LeaseLost


@dataclass
class Lease:
    """Held by `holder` under `id` until `expires_s` of the orchestrator's clock.

    An expired lease that nobody else took still counts: its holder was slow, not replaced.
    """

    holder: str
    id: str
    expires_s: float

    def take(self, holder: str, fresh_id: str, now: float, lease_s: float) -> None:
        """Renew for the same holder, or pass to another once it expired.

        Raises LeaseLost while another holder's lease is live, saying for how long.
        """
        live = now < self.expires_s
        if live and holder != self.holder:
            left_s = self.expires_s - now
            raise LeaseLost(f"{self.holder!r} holds this run for another {left_s:.1f} s", retry_after_s=left_s)
        if not live:
            self.holder, self.id = holder, fresh_id
        self.expires_s = now + lease_s

    def renew(self, lease: str, now: float, lease_s: float) -> None:
        """Raises LeaseLost for any other id."""
        self.check(lease)
        self.expires_s = now + lease_s

    def check(self, lease: str) -> None:
        """Raises LeaseLost for any other id."""
        if lease != self.id:
            raise LeaseLost(f"this lease is not the run's: {self.holder!r} holds it now")

"""A driver's hold on its run at the orchestrator: submitted, renewed from a thread, given back at the end."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable

from pnode.errors import Busy, LeaseLost, PeerUnavailable, PNodeError, StoreUnavailable, Unavailable, UnknownRun
from pnode.transport.api import RunsApi
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff, retry
from pnode.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

_CALL_S = 10.0


class RunLease:
    """The lease of one run. Thread-safe; `close` ends the renewals, after which it runs out."""

    def __init__(
        self,
        runs: RunsApi,
        spec: orchestrator_pb2.RunSpec,
        holder: str,
        *,
        closing: threading.Event,
        backoff: Callable[[], Backoff],
    ) -> None:
        self.run = spec.id
        self._runs = runs
        self._spec = spec
        self._holder = holder
        self._nonce = secrets.token_hex(16)
        self._closing = closing
        self._make_backoff = backoff
        self._lock = threading.Lock()
        self._lease = ""
        self._lease_s = 60.0
        self._lost: LeaseLost | None = None
        self._renewals: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether the run was ever ours."""
        return bool(self._lease)

    def submit(self, deadline: Deadline) -> orchestrator_pb2.RunStatus:
        """Submit the run, or take it over. Raises LeaseLost while another driver's lease is live."""
        request = orchestrator_pb2.SubmitRequest(run=self._spec, holder=self._holder, nonce=self._nonce)
        reply = self._runs.submit(request, deadline.at_most(_CALL_S))
        with self._lock:
            self._lease, self._lease_s, self._lost = reply.lease, reply.lease_s, None
            if self._renewals is None:
                self._renewals = threading.Thread(target=self._renew, name="lease", daemon=True)
                self._renewals.start()
        return reply.status

    def status(self, deadline: Deadline) -> orchestrator_pb2.RunStatus:
        """How the run stands; renews the lease. An orchestrator that does not know the run is given it."""
        if not self._lease:
            return self.submit(deadline)
        self.check()
        request = orchestrator_pb2.StatusRequest(run=self.run, lease=self._lease)
        try:
            return self._runs.status(request, deadline.at_most(_CALL_S)).status
        except UnknownRun:
            log.info("the orchestrator does not know run %s any more; submitting it again", self.run)
            return self.submit(deadline)

    def checkpoint(
        self, generation: int, version: int, cursor: int, deadline: Deadline
    ) -> orchestrator_pb2.CheckpointReply:
        """A common checkpoint at `version`; waits while another one is under way."""
        self.check()
        request = orchestrator_pb2.CheckpointRequest(
            run=self.run, lease=self._lease, generation=generation, version=version, cursor=cursor
        )
        return retry(
            lambda: self._runs.checkpoint(request, deadline),
            deadline,
            self._make_backoff(),
            self._closing.wait,
            on=(Busy, StoreUnavailable),
            few=(PeerUnavailable,),
        )

    def finish(self, deadline: Deadline) -> None:
        """The run is done: its VNodes are released, its manifests stay."""
        self.check()
        request = orchestrator_pb2.FinishRequest(run=self.run, lease=self._lease)
        retry(
            lambda: self._runs.finish(request, deadline.at_most(_CALL_S)),
            deadline,
            self._make_backoff(),
            self._closing.wait,
            on=(PeerUnavailable,),
        )

    def check(self) -> None:
        """Raise LeaseLost where another driver has taken the run."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """End the renewals; `closing` must be set. Safe to call twice."""
        thread = self._renewals
        if thread is not None:
            thread.join(_CALL_S + 1.0)

    def _renew(self) -> None:
        while not self._closing.wait(self._lease_s / 3):
            request = orchestrator_pb2.StatusRequest(run=self.run, lease=self._lease)
            try:
                self._runs.status(request, Deadline.after(min(_CALL_S, self._lease_s / 3)))
            except LeaseLost as error:
                self._lost = error
            except Unavailable as error:
                log.warning("the lease of run %s could not be renewed: %s", self.run, error)
            except PNodeError as error:
                # Whoever uses the lease next meets the same error and deals with it.
                log.debug("renewing the lease of run %s: %s", self.run, error)

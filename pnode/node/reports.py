"""Tells the orchestrator of failures, from a thread of its own, so that nobody who failed has to wait for it."""

from __future__ import annotations

import logging
import queue
import threading

from pnode.errors import PNodeError
from pnode.transport.api import OrchestratorApi
from pnode.transport.deadline import Deadline
from pnode.v1 import orchestrator_pb2, vnode_pb2

log = logging.getLogger(__name__)

# More reports than this at once say nothing new; heartbeats tell the rest.
_MAX_WAITING = 256
_REPORT_S = 5.0


class Reporter:
    """A bounded queue of failure reports and the thread that sends them."""

    def __init__(self, orchestrator: OrchestratorApi, reporter_uuid: str) -> None:
        self._orchestrator = orchestrator
        self._uuid = reporter_uuid
        self._queue: queue.Queue[orchestrator_pb2.ReportFailureRequest | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._send_all, name="reports", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def report(self, fence: vnode_pb2.Fence, reason: str, message: str) -> None:
        """Queue one report. When the queue is full it is dropped: the orchestrator is gone or knows already."""
        request = orchestrator_pb2.ReportFailureRequest(
            reporter_uuid=self._uuid, fence=fence, reason=reason, message=message
        )
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            log.warning("a failure report about VNode %s was dropped: too many wait", fence.vnode)

    def _send_all(self) -> None:
        while (request := self._queue.get()) is not None:
            try:
                self._orchestrator.report_failure(request, Deadline.after(_REPORT_S))
            except PNodeError as error:
                # Not retried: missed heartbeats or the next caller's report say the same.
                log.warning("could not report VNode %s: %s", request.fence.vnode, error)

    def close(self) -> None:
        """Send what waits, then end."""
        try:
            self._queue.put(None, timeout=_REPORT_S)
        except queue.Full:
            return
        self._thread.join(_REPORT_S)

"""Members stay members: they join again before their time is over, whatever the door is like by then."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from orchestrator_doors import SECRET, where
from orchestrator_time import Clock, soon

from pnode.errors import Busy, DeadlineExceeded, Unavailable, UnknownRun
from pnode.orchestrator.door import Door
from pnode.orchestrator.orchestrator import Orchestrator
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.security.identity import Identity
from pnode.security.principals import DRIVER
from pnode.storage.local import LocalStore
from pnode.transport import methods
from pnode.transport.channels import ChannelPool
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteRuns
from pnode.v1 import orchestrator_pb2

pytestmark = pytest.mark.timeout(60)


def test_a_membership_is_renewed_and_outlasts_an_outage(guarded: Orchestrator) -> None:
    steady = Clock()
    joiner = Joiner(Identity.fresh(), where(guarded), enrolment=SECRET, steady=steady)
    first = joiner.join(soon())
    steady.now += first.renew_s - 1.0
    assert joiner.join(soon()) is first
    steady.now += 2.0
    second = joiner.join(soon())
    assert second.tls != first.tls
    assert joiner.tls_identity() == second.tls
    guarded.close()
    steady.now += second.renew_s + 1.0
    held = joiner.join(soon().at_most(1.0))
    assert (held.token, held.tls) == (second.token, second.tls)
    assert held.due_s > steady.now, "and the next call does not try at once again"


def test_a_busy_door_is_no_reason_to_give_up_a_membership(plain: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise Busy("too many at the door")

    steady = Clock()
    joiner = Joiner(Identity.fresh(), where(plain), steady=steady)
    first = joiner.join(soon())
    monkeypatch.setattr(Door, "_check_proof", busy)
    steady.now += first.renew_s + 1.0
    assert joiner.join(soon()).token == first.token
    with pytest.raises(Busy):
        Joiner(Identity.fresh(), where(plain)).join(soon())


def test_a_slow_door_takes_a_third_of_one_calls_time(plain: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other calls go on meanwhile; only what the orchestrator no longer takes is waited for."""
    asked, may_go = threading.Event(), threading.Event()

    def slow(*_: object) -> NoReturn:
        asked.set()
        may_go.wait(20.0)
        raise Unavailable("was slow")

    steady = Clock()
    joiner = Joiner(Identity.fresh(), where(plain), steady=steady)
    first = joiner.join(soon())
    monkeypatch.setattr(Door, "_check_proof", slow)
    steady.now += first.renew_s + 1.0
    with ThreadPoolExecutor(1) as threads:
        renewing = threads.submit(joiner.join, soon())
        assert asked.wait(20.0)
        assert joiner.join(soon()) is first
        assert joiner.renounce(methods.RUNS.full_name)
        with pytest.raises(DeadlineExceeded, match="was still joining"):
            joiner.join(soon().at_most(0.05))
        may_go.set()
        assert renewing.result().token == first.token
    may_go.clear()
    steady.now += 10.0
    deadline = soon().at_most(1.5)
    assert joiner.join(deadline).token == first.token
    assert deadline.left_s() > 0.1, "the call itself has time left"
    may_go.set()


def test_a_clock_that_is_off_is_named_and_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = OrchestratorSettings(port=0, tls=True)
    ahead = Orchestrator(LocalStore(tmp_path), settings, unix_clock=lambda: time.time() + 7200)
    ahead.start()
    try:
        joiner = Joiner(Identity.fresh(), where(ahead), role=DRIVER)
        with ChannelPool(passes=joiner) as pool, caplog.at_level(logging.WARNING), pytest.raises(UnknownRun):
            RemoteRuns(pool, str(where(ahead).address)).status(orchestrator_pb2.StatusRequest(run="r"), soon())
        assert "this machine's clock is -120 min off the orchestrator's" in caplog.text
        now = joiner.clock.now()
        assert now is not None
        assert now - time.time() > 7000
    finally:
        ahead.close()

"""Every way out of the box is shut: by seccomp alone, by what Landlock alone can see, and by both together."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_escapes import ESCAPES
from sandbox_specs import linear_spec
from sandbox_world import DEADLINE_S, Exits, hostile, outside

from pnode.errors import ConfigError, LimitBreach, WorkerLost
from pnode.sandbox import layers
from pnode.sandbox.privileges import Users, users
from pnode.sandbox.supervisor import WorkerProcess, ZygoteProcess

OFFERED = layers.found()

needs_seccomp = pytest.mark.skipif(layers.SECCOMP not in OFFERED, reason="this kernel filters no system calls")
needs_landlock = pytest.mark.skipif(layers.LANDLOCK not in OFFERED, reason="this kernel has no Landlock")
needs_root = pytest.mark.skipif(layers.UID not in OFFERED, reason="not root")

# What Landlock denies by itself: files and TCP, whoever asks, and signals outside.
OF_LANDLOCK = ("open to read", "open to write", "list a folder", "make a folder", "connect", "signal the parent")


@pytest.fixture(scope="module")
def by_seccomp() -> Iterator[ZygoteProcess]:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S, offered=[layers.SECCOMP]) as started:
        yield started


@pytest.fixture(scope="module")
def by_landlock() -> Iterator[ZygoteProcess]:
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S, offered=[layers.LANDLOCK]) as started:
        yield started


def attempts(zygote: ZygoteProcess, escapes: list[str]) -> dict[str, int]:
    """The errno of each, tried one after the other by one worker, which must live on."""
    worker = zygote.fork(linear_spec())
    found = {name: int(worker.call("attempt", {"escape": name}, deadline_s=10).fields["errno"]) for name in escapes}
    assert worker.call("echo", {"a": 1}, deadline_s=10).fields == {"a": 1}
    worker.close()
    return found


def worked(found: dict[str, int]) -> list[str]:
    return [name for name, number in found.items() if number == 0]


@needs_seccomp
def test_no_escape_works(zygote: ZygoteProcess) -> None:
    assert worked(attempts(zygote, list(ESCAPES))) == []
    assert not Path("/tmp/pnode-escape").exists()


@needs_seccomp
def test_seccomp_alone_denies_each_by_its_own_rule(by_seccomp: ZygoteProcess) -> None:
    found = attempts(by_seccomp, list(ESCAPES))
    assert found.pop("clone3") == errno.ENOSYS
    assert set(found.values()) == {errno.EPERM}, found


@needs_landlock
def test_landlock_alone_denies_files_network_and_signals(by_landlock: ZygoteProcess) -> None:
    found = attempts(by_landlock, list(OF_LANDLOCK))
    assert worked(found) == []
    assert set(found.values()) <= {errno.EACCES, errno.EPERM}


def test_proc_shows_the_box(worker: WorkerProcess) -> None:
    status = outside(worker.pid)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == ("2" if layers.SECCOMP in OFFERED else "0")
    assert {status[name].strip("0") for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {""}
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "1000"


@needs_root
def test_each_worker_is_a_user_of_its_own(zygote: ZygoteProcess) -> None:
    workers = [zygote.fork(linear_spec()) for _ in range(3)]
    ids = [outside(worker.pid)[name].split() for worker in workers for name in ("Uid", "Gid")]
    assert all(len(set(each)) == 1 for each in ids)
    assert len({each[0] for each in ids}) == 3
    assert min(int(each[0]) for each in ids) > 1000
    assert {outside(worker.pid)["Groups"] for worker in workers} == {""}
    for worker in workers:
        worker.close()


def test_a_node_that_may_not_change_users_has_every_other_layer() -> None:
    """A front without capabilities, as of a user who is not root."""
    code = f"""if True:
        import sys
        sys.path[:0] = [{str(Path(__file__).parents[1] / "sandbox")!r}]
        from sandbox_specs import linear_spec
        from sandbox_world import hostile, outside
        from pnode.sandbox import confinement, privileges
        from pnode.sandbox.supervisor import ZygoteProcess
        confinement.forbid_new_privileges()
        privileges.drop_capabilities()
        with ZygoteProcess.start(program=hostile(), deadline_s=20) as zygote:
            worker = zygote.fork(linear_spec())
            errnos = [worker.call("attempt", {{"escape": name}}, deadline_s=10).fields["errno"]
                      for name in ("fork", "open to read", "signal the parent", "limit the parent")]
            print(*zygote.layers, outside(worker.pid)["Seccomp"], *errnos)
            worker.close()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    others = [name for name in OFFERED if name != layers.UID]
    assert done.stdout.split() == [*others, "2" if layers.SECCOMP in OFFERED else "0", *["1"] * 4]


@needs_seccomp
def test_threads_are_allowed_and_counted(zygote: ZygoteProcess) -> None:
    worker = zygote.fork(linear_spec(), num_threads=3)
    started = worker.call("threads", {"wanted": 8}, deadline_s=10).fields["started"]
    assert started == (2 if layers.UID in OFFERED else 8)
    worker.close()


def test_a_worker_that_raises_its_processor_limit_is_still_measured(zygote: ZygoteProcess, exits: Exits) -> None:
    worker = zygote.fork(linear_spec(cpu_s=0.3), on_exit=exits)
    with pytest.raises(LimitBreach, match=r"0\.3 s of processor time"):
        worker.call("raise_cpu_and_spin", deadline_s=None)
    (verdict,) = exits.wait()
    assert (verdict.kind, verdict.figures["limit_s"]) == ("cpu", 0.3)
    assert 0.3 <= verdict.figures["cpu_s"] < 0.8


def spin(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerLost):
        worker.call("spin", deadline_s=None)


def test_others_are_served_meanwhile(zygote: ZygoteProcess, worker: WorkerProcess) -> None:
    other = zygote.fork(linear_spec(cpu_s=5))
    spinning = threading.Thread(target=lambda: spin(other))
    spinning.start()
    for number in range(20):
        assert worker.call("echo", {"n": number}, deadline_s=10).fields == {"n": number}
    other.kill("a test")
    spinning.join(DEADLINE_S)


def test_a_layer_that_is_required_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"sandbox\.require: no landlock here"):
        ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S, offered=["seccomp"], require=["landlock"])
    with ZygoteProcess.start(program=hostile(), deadline_s=DEADLINE_S, require=OFFERED) as started:
        assert started.layers == OFFERED


def _files(tmp_path: Path, capabilities: str, mapped: str) -> tuple[Path, Path]:
    status, uid_map = tmp_path / "status", tmp_path / "uid_map"
    status.write_text(f"Name:\tx\nCapEff:\t{capabilities}\n")
    uid_map.write_text(mapped)
    return status, uid_map


@pytest.mark.parametrize(
    ("capabilities", "mapped", "wanted"),
    [
        ("000001ffffffffff", "         0          0 4294967295\n", Users(0x70000000, 1 << 22)),
        ("00000000a80425fb", "0 100000 65536\n", Users(57344, 4096)),
        ("000001ffffffffff", "0 1000 1\n", None),
        ("0000000000000000", "0 0 4294967295\n", None),
        ("000000000000000f", "0 0 4294967295\n", None),
    ],
)
def test_users_are_taken_from_what_is_mapped(
    tmp_path: Path, capabilities: str, mapped: str, wanted: Users | None
) -> None:
    assert users(*_files(tmp_path, capabilities, mapped)) == wanted

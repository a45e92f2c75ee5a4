"""A zygote's program without torch, whose workers misbehave on command. Run by the sandbox's tests as a zygote."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import stat
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pnode.errors import BadRequest, BlobCorrupt, PNodeError, SpecError, StepMismatch, WorkerLost
from pnode.sandbox import confinement, zygote
from pnode.sandbox.program import Note
from pnode.sandbox.worker import Answer, Fields
from pnode.v1 import spec_pb2
from pnode.vnode.tensors import TensorBytes

_ERRORS: dict[str, PNodeError] = {
    "BAD_REQUEST": BadRequest("no"),
    "BAD_SPEC": SpecError("operators[0]", "no"),
    "STEP_MISMATCH": StepMismatch("no"),
    "BLOB_CORRUPT": BlobCorrupt("no"),
    "WORKER_LOST": WorkerLost("not for a worker to say"),
}


class Hostile:
    """Commands are the methods below."""

    def __call__(self, command: str, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        method = getattr(self, command)
        found = method(fields, tensors)
        return found if isinstance(found, tuple) else (found or {}, ())

    def create(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        spec = spec_pb2.VNodeSpec.FromString(bytes(tensors[0].payload))
        if spec.id == "bad":
            raise SpecError("id", "is bad")
        if spec.id == "dies":
            os._exit(9)
        if spec.id == "hangs":
            _forever()
        return {"id": spec.id}, ()

    def echo(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        return dict(fields), tensors

    def about(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        status = dict(
            line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line
        )
        return {
            "fds": json.dumps(_fds()),
            "session": os.getsid(0),
            "parent": os.getppid(),
            "no_new_privs": int(status["NoNewPrivs"]),
            "sigint_ignored": bool(int(status["SigIgn"], 16) >> (signal.SIGINT - 1) & 1),
            "blocked": int(status["SigBlk"], 16),
            "environment": json.dumps(sorted(os.environ)),
            "stdin": os.readlink("/proc/self/fd/0") if os.access("/proc/self/fd", os.R_OK) else "/dev/null",
            "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
            "fsize": resource.getrlimit(resource.RLIMIT_FSIZE)[1],
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "nproc": resource.getrlimit(resource.RLIMIT_NPROC)[1],
            "cpu": resource.getrlimit(resource.RLIMIT_CPU)[0],
            "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        }

    def refuse(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        raise _ERRORS[str(fields["reason"])]

    def fault(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        raise RuntimeError("a secret in the text")

    def eat(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        hoard = []
        while True:
            hoard.append(bytearray(4 << 20))

    def say_out_of_memory(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    def spin(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        while True:
            pass

    def burn(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        ends = _cpu_s() + float(str(fields["cpu_s"]))
        while _cpu_s() < ends:
            pass
        return {}

    def hang(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        _forever()

    def kill_self(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        os.kill(os.getpid(), int(str(fields["signal"])))
        _forever()

    def leave(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        os._exit(int(str(fields["code"])))

    def write_file(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        try:
            Path(str(fields["path"])).write_bytes(b"x")
        except OSError as error:
            return {"errno": error.errno}
        return {"errno": 0}

    def write_inbox(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        """Try to make the inbox writable; True if that worked."""
        (line,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if "pnode-inbox" in line]
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        refused = ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 3)
        return {"writable": refused == 0, "protection": line.split()[1]}

    def send_raw(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        """Send bytes of the test's choice, some times, and say nothing more."""
        raw = bytes.fromhex(str(fields["hex"])).ljust(int(str(fields.get("pad", 0))))
        for _ in range(int(str(fields.get("times", 1)))):
            _channel().send(raw)
        if fields.get("leave"):
            os._exit(3)
        _forever()

    def send_fd(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        socket.send_fds(_channel(), [b"{}"], [0])
        _forever()

    def close_socket(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        os.close(_channel_fd())
        _forever()

    def answer_twice(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        _channel().send(json.dumps({"sequence": fields["sequence"], "fields": {}, "tensors": []}).encode())
        return {}

    def answer_too_much(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        return {}, [TensorBytes("big", 5, (1 << 30,), memoryview(bytearray(1 << 30)))]

    def long_reply(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        return {"text": "x" * 100_000}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _fds() -> list[int]:
    return [fd for fd in range(4096) if _is_open(fd)]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _channel_fd() -> int:
    (fd,) = [fd for fd in _fds()[3:] if stat.S_ISSOCK(os.fstat(fd).st_mode)]
    return fd


def _channel() -> socket.socket:
    return socket.socket(fileno=os.dup(_channel_fd()))


def _forever() -> NoReturn:
    while True:
        signal.pause()


class Program:
    """What this zygote is loaded with."""

    def commands(self, *, num_threads: int, device: str) -> Hostile:
        return Hostile()

    def probe(self) -> dict[str, object]:
        return {"versions": {"torch": "none"}, "gpus": [], "pid": os.getpid()}


def load(note: Note) -> Program:
    """The first argument says what goes wrong in the zygote itself."""
    wish = sys.argv[1]
    note(f"loading, threads: {confinement.num_threads()}")
    if wish == "fails":
        raise RuntimeError("the canary died")
    if wish == "exits":
        os._exit(5)
    if wish == "hangs":
        _forever()
    if wish == "threads":
        threading.Thread(target=_forever, daemon=True).start()
    return Program()


if __name__ == "__main__":
    sys.exit(zygote.run(int(sys.argv[-2]), int(sys.argv[-1]), load))

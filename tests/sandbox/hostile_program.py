"""A zygote's program without torch, whose workers misbehave on command. Run by the sandbox's tests as a zygote."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from pnode.errors import BadRequest, BlobCorrupt, PNodeError, SpecError, StepMismatch, WorkerLost
from pnode.sandbox import confinement, zygote
from pnode.sandbox.program import Note
from pnode.sandbox.worker import Answer, Fields
from pnode.v1 import spec_pb2
from pnode.vnode.tensors import TensorBytes

sys.path.insert(0, str(Path(__file__).parent))

from sandbox_escapes import ESCAPES

_LIBC = ctypes.CDLL(None, use_errno=True)

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
        return {"fds": json.dumps(_fds()), "environment": json.dumps(sorted(os.environ))}

    def attempt(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        """Try one of the escapes; its errno, or 0 where it worked."""
        try:
            ESCAPES[str(fields["escape"])]()
        except OSError as error:
            return {"errno": error.errno}
        return {"errno": 0}

    def say(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        """Fill stderr with more than any pipe holds."""
        said = 0
        for _ in range(200):
            try:
                said += os.write(2, str(fields["text"]).encode() * 1000)
            except BlockingIOError:
                return {"said": said}
        return {"said": said}

    def threads(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        """Start threads until one is refused, or there are as many as wanted."""
        wait, started = threading.Event(), 0
        try:
            for _ in range(int(str(fields["wanted"]))):
                threading.Thread(target=wait.wait, daemon=True).start()
                started += 1
        except RuntimeError:
            return {"started": started}
        finally:
            wait.set()
        return {"started": started}

    def raise_cpu_and_spin(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        while True:
            pass

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

    def write_inbox(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        """Try to make the inbox, where the tensor lies, writable; True if that worked."""
        address = np.frombuffer(tensors[0].payload, np.uint8).ctypes.data
        page = address - address % 4096
        refused = _LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(4096), 3)
        return {"writable": refused == 0, "errno": ctypes.get_errno()}

    def send_raw(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        """Send bytes of the test's choice, some times, and say nothing more."""
        raw = bytes.fromhex(str(fields["hex"])).ljust(int(str(fields.get("pad", 0))))
        for _ in range(int(str(fields.get("times", 1)))):
            os.write(_channel_fd(), raw)
        if fields.get("leave"):
            os._exit(3)
        _forever()

    def send_fd(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=_channel_fd())
        socket.send_fds(channel, [b"{}"], [0])
        _forever()

    def close_socket(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        os.close(_channel_fd())
        _forever()

    def answer_twice(self, fields: Fields, tensors: Sequence[TensorBytes]) -> Fields:
        number = int(str(fields["number"])).to_bytes(8, "little")
        os.write(_channel_fd(), number + json.dumps({"fields": {}, "tensors": []}).encode())
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
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _channel_fd() -> int:
    (fd,) = [fd for fd in _fds()[3:] if _is_socket(fd)]
    return fd


def _is_socket(fd: int) -> bool:
    peeked = _LIBC.recv(fd, ctypes.create_string_buffer(1), ctypes.c_size_t(1), socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return bool(peeked >= 0 or ctypes.get_errno() != errno.ENOTSOCK)


def _forever() -> NoReturn:
    while True:
        select.poll().poll()


class Program:
    """What this zygote is loaded with."""

    def commands(self, *, num_threads: int, device: str) -> Hostile:
        return Hostile()

    def probe(self) -> dict[str, object]:
        # With the wish "changes", each zygote computes bits of its own.
        digest = str(os.getppid()) if sys.argv[1] == "changes" else "always the same"
        samebits = {"digest": digest, "differing": []}
        return {"versions": {"torch": "none"}, "gpus": [], "pid": os.getpid(), "samebits": samebits}


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

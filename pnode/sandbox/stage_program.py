"""The zygote's real program: torch, samebits and Stage. All that a worker needs is imported and compiled here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import samebits
import torch

from pnode.errors import BadRequest
from pnode.sandbox import probe_torch, rehearsal
from pnode.sandbox.frames import FrameError, integer
from pnode.sandbox.program import Note
from pnode.sandbox.worker import Answer, Fields
from pnode.v1 import tensor_pb2
from pnode.vnode import spec as vnode_spec
from pnode.vnode.stage import Stage
from pnode.vnode.tensors import TensorBytes
from pnode.vnode.torch_tensors import Outgoing, as_torch, to_bytes, to_torch


class StageCommands:
    """One VNode's Stage behind the commands of its worker."""

    def __init__(self, *, num_threads: int, device: str) -> None:
        self._num_threads = num_threads
        self._device = device
        self._stage: Stage | None = None
        self._named: Sequence[TensorBytes] = ()
        self._inputs: dict[str, torch.Tensor] = {}
        self._commands = {
            "forward": self._forward,
            "begin": self._begin,
            "finish": self._finish,
            "discard": self._discard,
            "apply": self._apply,
            "state": self._state,
            "restore": self._restore,
            "describe": self._describe,
        }

    def __call__(self, command: str, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        """Run a command of the Stage. Raises BadRequest for an unknown one or for missing fields."""
        if command == "create":
            return self._create(tensors)
        method = self._commands.get(command)
        if method is None or self._stage is None:
            raise BadRequest(f"no command {command[:100]!r}, or none before create")
        try:
            return method(self._stage, fields, tensors)
        except FrameError as error:
            raise BadRequest(f"{command}: {error}") from None

    def _create(self, tensors: Sequence[TensorBytes]) -> Answer:
        (raw,) = tensors
        self._stage = Stage(
            vnode_spec.from_bytes(bytes(raw.payload)), device=self._device, num_threads=self._num_threads
        )
        return self._describe(self._stage, {}, ())

    def _describe(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        about: Fields = {"version": stage.version, "accumulated": stage.accumulated}
        return {**about, "numerics_class": stage.numerics_class}, ()

    def _forward(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        if tensors is not self._named:
            # Of a command that came again they are the very ones of before, and so are these, over the same bytes.
            self._named, self._inputs = tensors, _seen(tensors)
        return {}, [Outgoing.of(name, value) for name, value in stage.outputs(self._inputs).items()]

    def _begin(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        num_inputs = integer(fields, "num_inputs")
        outputs = stage.begin(
            integer(fields, "step"),
            integer(fields, "microbatch"),
            integer(fields, "batch_rows"),
            _seen(tensors[:num_inputs]),
            _seen(tensors[num_inputs:]),
        )
        return {}, _packed(outputs)

    def _finish(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        finished = stage.finish(
            integer(fields, "step"),
            integer(fields, "microbatch"),
            _unpacked(tensors),
            want_input_gradients=bool(fields.get("want_input_gradients")),
        )
        about: Fields = {"loss_sum": float(finished.loss_sum), "duplicate": finished.duplicate}
        return about, _packed(finished.input_gradients)

    def _discard(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        stage.discard(integer(fields, "microbatch"))
        return {}, ()

    def _apply(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        applied = stage.apply(integer(fields, "step"), integer(fields, "num_microbatches"))
        return {"version": applied.version, "loss": applied.loss}, ()

    def _state(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        state = stage.state()
        about: Fields = {"version": stage.version}
        return about, [TensorBytes("state", tensor_pb2.DTYPE_U8, (len(state),), state)]

    def _restore(self, stage: Stage, fields: Fields, tensors: Sequence[TensorBytes]) -> Answer:
        if tensors:
            stage.restore(bytes(tensors[0].payload), integer(fields, "version"))
        else:
            stage.restore(None)
        return self._describe(stage, {}, ())


def _seen(tensors: Sequence[TensorBytes]) -> dict[str, torch.Tensor]:
    """Tensors over the inbox itself, good until the next command writes it: for what copies whatever it keeps."""
    return {tensor.name: as_torch(tensor) for tensor in tensors}


def _unpacked(tensors: Sequence[TensorBytes]) -> dict[str, torch.Tensor]:
    """Copies: autograd may keep a gradient that it is given, or add to it in place."""
    return {tensor.name: to_torch(tensor) for tensor in tensors}


def _packed(tensors: Mapping[str, torch.Tensor]) -> list[TensorBytes]:
    return [to_bytes(name, tensor) for name, tensor in tensors.items()]


class StageProgram:
    """What children of the zygote run."""

    def commands(self, *, num_threads: int, device: str) -> StageCommands:
        """Of a VNode that `create` will make."""
        return StageCommands(num_threads=num_threads, device=device)

    def probe(self) -> dict[str, object]:
        """What torch finds here."""
        return probe_torch.report()


def load(note: Note) -> StageProgram:
    """Load or compile every kernel in one thread, and run each command once."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    samebits.set_num_threads(1)
    note("compiling or loading kernels; the first time takes about a minute")
    samebits.warm()
    note("rehearsing")
    rehearsal.run(StageCommands(num_threads=1, device="cpu"))
    return StageProgram()

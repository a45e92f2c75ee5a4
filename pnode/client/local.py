"""A run in one process, without any network: the same stages, called one after the other.

By default the model is uncut and a batch is one microbatch: the plainest way to the digest that every other way must
reach. Imports torch; drivers and the devnet's parent process do not import this module.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pnode.client.batch import Batch
from pnode.v1 import spec_pb2
from pnode.vnode.chain import validate_chain
from pnode.vnode.requests import Requests
from pnode.vnode.stage import Stage
from pnode.vnode.state import run_digest
from pnode.vnode.tensors import TensorBytes
from pnode.vnode.torch_tensors import to_bytes, to_torch


class LocalRun:
    """All VNodes of a run in this process. Raises SpecError for specs that are no chain."""

    def __init__(self, specs: Sequence[spec_pb2.VNodeSpec], *, device: str = "cpu", num_threads: int = 1) -> None:
        validate_chain(specs)
        whole = [_unbounded(spec) for spec in specs]
        self._requests, self._last = Requests(whole[0]), Requests(whole[-1])
        self._stages = [Stage(spec, device=device, num_threads=num_threads) for spec in whole]

    @property
    def numerics_class(self) -> str:
        """Only results of equal classes may be compared."""
        return self._stages[0].numerics_class

    def step(self, step: int, batch: Batch, num_microbatches: int = 1) -> float:
        """Train one step on a whole batch; returns its mean loss."""
        for index, part in enumerate(batch.split(num_microbatches)):
            self._train(step, index, part, batch.num_rows)
        applied = [stage.apply(step, num_microbatches) for stage in self._stages]
        loss = applied[-1].loss
        assert loss is not None, "the last VNode owns the loss"
        return loss

    def _train(self, step: int, microbatch: int, part: Batch, batch_rows: int) -> None:
        self._last.targets(part.targets, self._requests.microbatch(part.inputs, part.targets))
        values = _tensors(part.inputs)
        for stage in self._stages:
            targets = _tensors(part.targets) if stage is self._stages[-1] else {}
            values = stage.begin(step, microbatch, batch_rows, values, targets)
        gradients: dict[str, Tensor] = {}
        for stage in reversed(self._stages):
            wanted = stage is not self._stages[0]
            gradients = stage.finish(step, microbatch, gradients, want_input_gradients=wanted).input_gradients

    def forward(self, rows: Batch) -> list[TensorBytes]:
        """Inference: the last VNode's outputs, as a driver gets them."""
        self._requests.forward(rows.inputs)
        values = _tensors(rows.inputs)
        for stage in self._stages:
            values = stage.forward(values)
        return [to_bytes(name, value) for name, value in values.items()]

    def states(self) -> list[bytes]:
        """The state record of every VNode, in model order."""
        return [stage.state() for stage in self._stages]

    def digest(self) -> str:
        """SHA-256 of weights and optimizer state, the same however the model is cut."""
        return run_digest(self.states())


def _unbounded(spec: spec_pb2.VNodeSpec) -> spec_pb2.VNodeSpec:
    """The same VNode for batches in one piece: here is no box whose memory a microbatch would have to fit."""
    copy = spec_pb2.VNodeSpec()
    copy.CopyFrom(spec)
    copy.limits.microbatch_rows = 0
    return copy


def _tensors(tensors: Sequence[TensorBytes]) -> dict[str, Tensor]:
    return {tensor.name: to_torch(tensor) for tensor in tensors}

"""A stage: one VNode's parameters, the graphs of its microbatches, and the steps of its training.

    begin(step, i)   train forward; the graph is kept until finish or discard
    finish(step, i)  backward, in microbatch order; each gradient is one chain over the whole batch
    apply(step)      the optimizer's step, once every microbatch is in

`accumulated` and the gradients change together. A microbatch that is in already is answered by recomputing, without
accumulating: parameters do not change within a step, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from pnode.errors import BadRequest, BlobCorrupt, StepMismatch, WorkerLost
from pnode.v1 import spec_pb2
from pnode.vnode import allow_list, bounds, liveness, state, values
from pnode.vnode.graph import Graph
from pnode.vnode.module import Module
from pnode.vnode.optimizing import OptimizerSteps
from pnode.vnode.profile import Profile
from pnode.vnode.spec import validate
from pnode.vnode.torch_tensors import canonical, content


class Finished(NamedTuple):
    """What a backward gives: gradients of the float inputs where wanted, and the raw loss sum of these rows."""

    input_gradients: dict[str, Tensor]
    loss_sum: float
    duplicate: bool


class Applied(NamedTuple):
    """The version after the step; the mean loss of the batch, from the owner of the loss. None: not known any more."""

    version: int
    loss: float | None


class Stage:
    """One VNode as torch computes it. Not for several threads; errors leave it as it was unless they say Restore.

    Names, dtypes and shapes of what it is given are those of the spec: whoever calls it has judged them (requests.py).
    """

    def __init__(self, spec: spec_pb2.VNodeSpec, *, device: str = "cpu", num_threads: int = 1) -> None:
        """Initial parameters at version 0. Raises SpecError, or ConfigError for a device that will not do."""
        validate(spec)
        self._spec = spec
        self._profile = _open_profile(spec.profile, device, num_threads)
        self._profile.activate()
        self._module = Module(spec, self._profile)
        self._forward_roots, self._training_roots = liveness.forward_roots(spec), liveness.training_roots(spec)
        self._steps = OptimizerSteps(spec, self._profile, self._module)
        self._num_classes = _num_classes(spec)
        self._torn = False
        self._stand_at(0)

    def _stand_at(self, version: int) -> None:
        self._version = version
        self._last: Applied | None = None
        self._begin_step()

    def _begin_step(self) -> None:
        self._graphs: dict[int, Graph] = {}
        self._accumulated = 0
        self._rows = 0
        self._batch_rows: int | None = None
        self._loss_total = torch.zeros((), dtype=torch.float32, device=self._profile.device)

    @property
    def version(self) -> int:
        """Optimizer steps taken; the step that is being trained."""
        return self._version

    @property
    def accumulated(self) -> int:
        """Microbatches of the running step that are in."""
        return self._accumulated

    @property
    def numerics_class(self) -> str:
        """Only results of equal classes may be compared."""
        return self._profile.numerics_class

    # Inference

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The spec's outputs (or the logits) for `inputs` of [rows, ..]."""
        return _handed_out(self.outputs(inputs))

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `forward`, but as they were computed: whoever copies them makes each NaN the canonical one."""
        self._check_whole()
        with torch.no_grad():
            placed = {name: value.to(self._profile.device).contiguous() for name, value in inputs.items()}
            return self._module.run(placed, self._forward_roots)

    # Training

    def begin(
        self, step: int, microbatch: int, batch_rows: int, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Train forward of one microbatch; `batch_rows` are the rows of the whole step. The owner of the loss gives {}.

        The inputs are copied, what is handed out is not to be changed. Raises StepMismatch for another step or
        outside the window, BadRequest.
        """
        self._check_whole()
        self._check_step(step)
        self._make_room(microbatch)
        rows = int(next(iter(inputs.values())).shape[0])
        for name, target in targets.items():
            values.check_classes(name, target, self._num_classes)
        self._check_rows(rows, batch_rows, in_already=microbatch < self._accumulated)
        leaves = {name: self._leaf(value) for name, value in inputs.items()}
        with torch.enable_grad():
            roots = self._module.run(leaves, self._training_roots)
        if self._spec.HasField("loss"):
            graph = self._with_loss(leaves, roots, targets, batch_rows)
        else:
            graph = Graph(leaves, roots, None, None, rows, batch_rows)
        self._graphs[microbatch] = graph
        return _handed_out(graph.outputs)

    def _leaf(self, value: Tensor) -> Tensor:
        owned = value.detach().to(self._profile.device, copy=True).contiguous()
        return owned.requires_grad_(owned.is_floating_point())

    def _with_loss(
        self, leaves: dict[str, Tensor], roots: dict[str, Tensor], targets: Mapping[str, Tensor], batch_rows: int
    ) -> Graph:
        entropy = self._spec.loss.cross_entropy
        logits = roots[entropy.logits]
        target = targets[entropy.target].detach().to(self._profile.device, copy=True)
        with torch.enable_grad():
            loss = self._profile.cross_entropy(logits, target, batch_rows)
        with torch.no_grad():
            row_losses = self._profile.row_losses(logits, target)
        return Graph(leaves, {}, loss, row_losses, int(target.shape[0]), batch_rows)

    def finish(
        self, step: int, microbatch: int, output_gradients: Mapping[str, Tensor], *, want_input_gradients: bool
    ) -> Finished:
        """Backward of a microbatch that has begun. Every float output needs its gradient; of the last VNode, none.

        Raises StepMismatch for another step, out of turn, or without a begin; BadRequest for too many rows.
        """
        self._check_whole()
        self._check_step(step)
        graph = self._graphs.get(microbatch)
        if graph is None:
            raise StepMismatch(f"microbatch {microbatch} of step {step} has not begun")
        if microbatch > self._accumulated:
            raise StepMismatch(f"it is the turn of microbatch {self._accumulated}, not of {microbatch}")
        duplicate = microbatch < self._accumulated
        self._check_rows(graph.rows, graph.batch_rows, in_already=duplicate)
        if not duplicate:
            found = self._accumulate(graph, output_gradients)
        elif want_input_gradients:
            found = graph.leaf_gradients(output_gradients)
        del self._graphs[microbatch]
        return Finished(_handed_out(found) if want_input_gradients else {}, self._loss_sum(graph), duplicate)

    def _accumulate(self, graph: Graph, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._changing():
            found = graph.accumulate(gradients)
            if graph.row_losses is not None:
                self._loss_total = self._profile.row_sum(graph.row_losses, self._loss_total)
            self._accumulated += 1
            self._rows += graph.rows
            self._batch_rows = graph.batch_rows
        return found

    def _loss_sum(self, graph: Graph) -> float:
        if graph.row_losses is None:
            return 0.0
        start = torch.zeros((), dtype=torch.float32, device=self._profile.device)
        return float(canonical(self._profile.row_sum(graph.row_losses, start)))

    def discard(self, microbatch: int) -> None:
        """Drop the graph of a microbatch that will not be finished, if there is one."""
        self._graphs.pop(microbatch, None)

    def apply(self, step: int, num_microbatches: int) -> Applied:
        """The optimizer's step, once all of `num_microbatches` are in; of the step just applied: answered again.

        After a Restore the loss of the step before it is not known any more. Raises StepMismatch.
        """
        self._check_whole()
        if 0 <= step == self._version - 1:
            return self._last or Applied(self._version, None)
        self._check_step(step)
        if num_microbatches < 1 or num_microbatches != self._accumulated:
            raise StepMismatch(f"{self._accumulated} of {num_microbatches} microbatches of step {step} are in")
        if self._rows != self._batch_rows:
            raise StepMismatch(f"{self._rows} of the {self._batch_rows} rows of step {step} are in")
        loss = self._mean_loss(self._rows)
        with self._changing():
            self._steps.take(step)
            self._stand_at(step + 1)
        self._last = Applied(self._version, loss)
        return self._last

    def _mean_loss(self, batch_rows: int) -> float | None:
        if not self._spec.HasField("loss"):
            return None
        share = torch.tensor(1.0 / batch_rows, dtype=torch.float32, device=self._profile.device)
        # 1 / rows is rounded to binary32 once, from binary64; the product is rounded once more.
        return float(canonical(self._loss_total * share))

    # State

    def state(self) -> bytes:
        """The state at this version (see state.py): equal states give equal bytes, whoever holds them."""
        self._check_whole()
        tensors = self._steps.tensors()
        contents = {name: content(canonical(tensor.detach())) for name, tensor in tensors.items()}
        return state.encode(self._spec, self._version, contents)

    def restore(self, record: bytes | None, version: int | None = None) -> None:
        """Adopt a state, or the initial one for None; graphs, gradients and microbatches are dropped.

        Raises BlobCorrupt, before anything is changed: also where the state is not of the version that is expected.
        """
        self._profile.activate()
        parsed = None if record is None else state.decode(self._spec, record)
        if parsed is not None and version not in (None, parsed.version):
            raise BlobCorrupt(f"the state is of version {parsed.version}, its record says {version}")
        with self._changing():
            self._steps.adopt(parsed)
            self._stand_at(0 if parsed is None else parsed.version)

    # Checks

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What happens inside happens whole, or nothing but Restore is allowed afterwards."""
        self._torn = True
        yield
        self._torn = False

    def _check_whole(self) -> None:
        if self._torn:
            raise WorkerLost(f"VNode {self._spec.id!r} failed in the middle of a change: it needs Restore")
        self._profile.activate()

    def _check_step(self, step: int) -> None:
        if step != self._version:
            raise StepMismatch(f"VNode {self._spec.id!r} trains step {self._version}; step {step} was asked")

    def _make_room(self, microbatch: int) -> None:
        """Graphs are memory: at most a window of them is held, and one more of a microbatch that is in already."""
        first, end = self._accumulated, self._accumulated + self._spec.window
        if not 0 <= microbatch < end:
            raise StepMismatch(f"microbatch {microbatch} is outside the window {first} .. {end - 1}")
        if microbatch < first:
            self._graphs = {kept: graph for kept, graph in self._graphs.items() if kept >= first}

    def _check_rows(self, rows: int, batch_rows: int, *, in_already: bool) -> None:
        if not 1 <= batch_rows <= bounds.MAX_BATCH_ROWS:
            raise BadRequest(f"batch_rows: expected 1 to {bounds.MAX_BATCH_ROWS}, got {batch_rows}")
        if self._batch_rows not in (None, batch_rows):
            raise BadRequest(f"batch_rows: expected {self._batch_rows} as before in this step, got {batch_rows}")
        if not in_already and self._rows + rows > batch_rows:
            raise BadRequest(f"{rows} rows come on top of {self._rows}, in a batch of {batch_rows}")


def _num_classes(spec: spec_pb2.VNodeSpec) -> int:
    """Of the loss; 0 where another VNode owns it."""
    if not spec.HasField("loss"):
        return 0
    return allow_list.value_shapes(spec)[spec.loss.cross_entropy.logits].shape[0]


def _open_profile(name: str, device: str, num_threads: int) -> Profile:
    # A worker loads only what it computes with.
    if name == "torch":
        from pnode.vnode.torch_profile import TorchProfile  # noqa: PLC0415

        return TorchProfile(device)
    from pnode.vnode.samebits_profile import SamebitsProfile  # noqa: PLC0415

    return SamebitsProfile(device, num_threads)


def _handed_out(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: canonical(value.detach().contiguous()) for name, value in values.items()}

"""A spec's operators as a module: parameters by their paths in the uncut model, values by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import samebits
import torch
from torch import Tensor
from torch.nn import Parameter

from pnode.v1 import spec_pb2
from pnode.vnode import allow_list, liveness
from pnode.vnode.allow_list import ParameterSpec, Uniform
from pnode.vnode.profile import Profile


def initial(parameter: ParameterSpec, seed: int) -> Tensor:
    """The initial f32 value: Philox keyed by the run's seed and the parameter's path, so no cut changes it."""
    name, shape, init = parameter
    if init == "zeros":
        return torch.zeros(shape)
    if init == "ones":
        return torch.ones(shape)
    site = samebits.random.site(name)
    if isinstance(init, Uniform):
        return samebits.random.uniform(shape, -init.bound, init.bound, seed=seed, site=site)
    return samebits.random.normal(shape, init.std, seed=seed, site=site)


class _Step(NamedTuple):
    """One operator, and what its message says, read once: the parameters are the module's own."""

    op: spec_pb2.Operator
    operands: tuple[str, ...]
    output: str
    parameters: list[Parameter]


class Module:
    """Parameters, and the operators in their order. The spec must be valid."""

    def __init__(self, spec: spec_pb2.VNodeSpec, profile: Profile) -> None:
        self._spec = spec
        self._profile = profile
        self._plans: dict[tuple[str, ...], tuple[dict[str, int], list[_Step]]] = {}
        self.parameters: dict[str, Parameter] = {}
        for parameter in allow_list.parameter_specs(spec):
            value = Parameter(initial(parameter, spec.seed).to(profile.device))
            # The gradient lives as long as the parameter: every microbatch continues the chain in this buffer.
            value.grad = torch.zeros_like(value)
            self.parameters[parameter.name] = value

    def reset(self) -> None:
        """Back to the initial parameters."""
        with torch.no_grad():
            for parameter in allow_list.parameter_specs(self._spec):
                self.parameters[parameter.name].copy_(initial(parameter, self._spec.seed))

    def zero_gradients(self) -> None:
        """+0 in every gradient, the buffers kept."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()

    def run(self, inputs: Mapping[str, Tensor], roots: Sequence[str]) -> dict[str, Tensor]:
        """Compute the values called `roots` from the VNode's inputs, with a leading axis of rows in all of them.

        A value with several readers goes through a fork: operators in their order, then the roots in theirs.
        """
        reads, steps = self._plan(tuple(roots))
        branches: dict[str, list[Tensor]] = {}
        for name, value in inputs.items():
            branches[name] = self._branches(value, reads.get(name, 0))
        for op, operands, output, parameters in steps:
            result = self._profile.run(op, [branches[name].pop(0) for name in operands], parameters)
            branches[output] = self._branches(result, reads[output])
        return {name: branches[name].pop(0) for name in roots}

    def _plan(self, roots: tuple[str, ...]) -> tuple[dict[str, int], list[_Step]]:
        if roots not in self._plans:
            live = [self._step(self._spec.operators[at]) for at in liveness.live_operators(self._spec, roots)]
            self._plans[roots] = (liveness.num_reads(self._spec, roots), live)
        return self._plans[roots]

    def _step(self, op: spec_pb2.Operator) -> _Step:
        owned = [self.parameters[name] for name, _, _ in allow_list.operator_parameters(op)]
        return _Step(op, tuple(op.inputs), op.output, owned)

    def _branches(self, value: Tensor, num_readers: int) -> list[Tensor]:
        if num_readers <= 1 or not value.requires_grad:
            return [value] * num_readers
        return list(self._profile.fork(value, num_readers))

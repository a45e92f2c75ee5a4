"""The optimizer of a stage: its steps at the schedule's rate, and its tensors in and out of states."""

from __future__ import annotations

import torch
from torch import Tensor

from pnode.v1 import spec_pb2
from pnode.vnode import schedule, state
from pnode.vnode.module import Module
from pnode.vnode.profile import Profile
from pnode.vnode.state import ParsedState
from pnode.vnode.torch_tensors import from_state


class OptimizerSteps:
    """Steps and state of a module. A VNode without parameters takes its steps too, and changes nothing."""

    def __init__(self, spec: spec_pb2.VNodeSpec, profile: Profile, module: Module) -> None:
        self._spec = spec
        self._profile = profile
        self._module = module
        self._kinds = state.optimizer_tensors(spec.optimizer)
        parameters = list(module.parameters.values())
        self._optimizer = profile.optimizer(parameters, spec.optimizer) if parameters else None

    def take(self, step: int) -> None:
        """One step with the gradients as they are; then the gradients are +0."""
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = schedule.learning_rate(self._spec.optimizer, step)
            self._optimizer.step()
        self._module.zero_gradients()

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the state: parameters, and after the first step what the optimizer keeps."""
        found: dict[str, Tensor] = {f"param/{name}": value for name, value in self._module.parameters.items()}
        for kind in self._kinds:
            for name, parameter in self._module.parameters.items():
                kept = self._optimizer.state.get(parameter) if self._optimizer is not None else None
                if kept:
                    found[f"{kind}/{name}"] = kept[kind]
        return found

    def adopt(self, parsed: ParsedState | None) -> None:
        """The tensors of a state that fits the spec, or the initial ones for None. Gradients are +0."""
        if self._optimizer is not None:
            self._optimizer.state.clear()
        if parsed is None:
            self._module.reset()
        else:
            self._adopt_tensors(parsed)
        self._module.zero_gradients()

    def _adopt_tensors(self, parsed: ParsedState) -> None:
        for name, parameter in self._module.parameters.items():
            with torch.no_grad():
                parameter.copy_(from_state(parsed.tensors[f"param/{name}"]))
            if self._optimizer is None or parsed.version == 0 or not self._kinds:
                continue
            kept: dict[str, object] = {
                kind: from_state(parsed.tensors[f"{kind}/{name}"]).to(self._profile.device) for kind in self._kinds
            }
            if "exp_avg" in self._kinds:
                kept["step"] = self._profile.step_count(parsed.version)
            self._optimizer.state[parameter] = kept

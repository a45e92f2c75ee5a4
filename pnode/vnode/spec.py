"""VNode specs: read, written, and judged. Whatever is refused is refused with the path of the offending field.

A spec is hostile until `validate` has passed: the bounds (bounds.py) are checked before any work that grows with what
the spec claims. Parsing and validation are separate, because specs also arrive inside other messages.
"""

from __future__ import annotations

import math

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from pnode.errors import SpecError
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode import allow_list, bounds, sizes
from pnode.vnode.liveness import check_liveness
from pnode.vnode.spec_json import read_json
from pnode.vnode.tensors import FLOATS, ITEM_BYTES, dtype_name, num_elements


def parse_json(text: str | bytes) -> spec_pb2.VNodeSpec:
    """A validated spec from JSON (the standard protobuf mapping). Raises SpecError with the path."""
    spec = spec_pb2.VNodeSpec()
    read_json(spec, text)
    validate(spec)
    return spec


def from_bytes(raw: bytes) -> spec_pb2.VNodeSpec:
    """A validated spec from its protobuf bytes. Raises SpecError with the path."""
    if len(raw) > bounds.MAX_SPEC_BYTES:
        raise SpecError("spec", f"expected at most {bounds.MAX_SPEC_BYTES} bytes, got {len(raw)}")
    spec = spec_pb2.VNodeSpec()
    try:
        spec.ParseFromString(raw)
    except DecodeError as error:
        raise SpecError("spec", "not a VNodeSpec message: truncated or malformed") from error
    validate(spec)
    return spec


def to_json(spec: spec_pb2.VNodeSpec) -> str:
    """JSON that `parse_json` reads back to an equal spec. Names as in the .proto."""
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=2)


def validate(spec: spec_pb2.VNodeSpec) -> None:
    """Raise SpecError, with the path, unless every part of `spec` is known, bounded and consistent."""
    _check_counts(spec)
    _check_unknown(spec, "")
    _check_identity(spec)
    for field in ("inputs", "targets"):
        for index, tensor in enumerate(getattr(spec, field)):
            _check_tensor(tensor, f"{field}[{index}]")
    _check_names(spec)
    values = allow_list.value_shapes(spec)
    _check_parameters(spec)
    _check_outputs(spec, values)
    _check_loss(spec, values)
    check_liveness(spec)
    _check_optimizer(spec.optimizer)
    _check_limits(spec)


def _check_counts(spec: spec_pb2.VNodeSpec) -> None:
    most = {"operators": bounds.MAX_OPERATORS}
    for field in ("inputs", "targets", "operators", "outputs"):
        _count(len(getattr(spec, field)), most.get(field, bounds.MAX_TENSORS), field)
    for index, op in enumerate(spec.operators):
        _count(len(op.inputs), bounds.MAX_OPERANDS, f"operators[{index}].inputs")
    for field in ("inputs", "targets"):
        for index, tensor in enumerate(getattr(spec, field)):
            _count(len(tensor.shape), bounds.MAX_DIMS, f"{field}[{index}].shape")
    if not spec.inputs:
        raise SpecError("inputs", "expected at least one")


def _count(number: int, most: int, path: str) -> None:
    if number > most:
        raise SpecError(path, f"expected at most {most}, got {number}")


def _check_unknown(message: Message, path: str) -> None:
    """Refuse fields that this version does not know: whoever wrote them meant something by them."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise SpecError(path or "spec", f"unknown field number {unknown[0].field_number}")
    for field, value in message.ListFields():
        here = f"{path}.{field.name}" if path else field.name
        if field.message_type is None:
            continue
        if field.is_repeated:
            for index, item in enumerate(value):
                _check_unknown(item, f"{here}[{index}]")
        else:
            _check_unknown(value, here)


def check_name(name: str, path: str) -> None:
    """Raise SpecError unless `name` may stand in paths, blobs' keys and logs."""
    if not bounds.NAME_PATTERN.fullmatch(name):
        raise SpecError(path, f"expected {bounds.NAME_RULE}, got {bounds.shown(name)}")


def _check_identity(spec: spec_pb2.VNodeSpec) -> None:
    check_name(spec.id, "id")
    check_name(spec.run, "run")
    if spec.profile not in bounds.PROFILES:
        raise SpecError("profile", f"expected one of {', '.join(bounds.PROFILES)}, got {bounds.shown(spec.profile)}")
    if spec.downstream:
        check_name(spec.downstream, "downstream")
        if spec.downstream == spec.id:
            raise SpecError("downstream", f"{spec.id!r} would be its own downstream VNode: cycles are refused")
    if not 1 <= spec.window <= bounds.MAX_WINDOW:
        raise SpecError("window", f"expected 1 to {bounds.MAX_WINDOW}, got {spec.window}")


def _check_tensor(tensor: tensor_pb2.TensorSpec, path: str) -> None:
    check_name(tensor.name, f"{path}.name")
    if tensor.dtype not in ITEM_BYTES:
        names = ", ".join(dtype_name(dtype) for dtype in sorted(ITEM_BYTES))
        raise SpecError(f"{path}.dtype", f"expected one of {names}, got {dtype_name(tensor.dtype)}")
    for axis, dim in enumerate(tensor.shape):
        if not 1 <= dim <= bounds.MAX_DIM:
            raise SpecError(f"{path}.shape[{axis}]", f"expected 1 to {bounds.MAX_DIM}, got {dim}")
    if num_elements(tensor.shape) > bounds.MAX_ROW_ELEMENTS:
        raise SpecError(f"{path}.shape", f"more than {bounds.MAX_ROW_ELEMENTS} elements in a row")


def _check_names(spec: spec_pb2.VNodeSpec) -> None:
    """Names of tensors and operators are well formed and not given twice."""
    tensors: set[str] = set()
    for field in ("inputs", "targets"):
        for index, tensor in enumerate(getattr(spec, field)):
            _unique(tensor.name, tensors, f"{field}[{index}].name")
    operators: set[str] = set()
    for index, op in enumerate(spec.operators):
        check_name(op.name, f"operators[{index}].name")
        _unique(op.name, operators, f"operators[{index}].name")
        check_name(op.output, f"operators[{index}].output")
        if any(op.output == target.name for target in spec.targets):
            raise SpecError(f"operators[{index}].output", f"{op.output!r} is the name of a target")


def _unique(name: str, seen: set[str], path: str) -> None:
    if name in seen:
        raise SpecError(path, f"{bounds.shown(name)} is there already")
    seen.add(name)


def _check_parameters(spec: spec_pb2.VNodeSpec) -> None:
    seen: set[str] = set()
    total = 0
    for index, op in enumerate(spec.operators):
        for parameter in allow_list.operator_parameters(op):
            if parameter.name in seen:
                raise SpecError(f"operators[{index}].name", f"parameter {parameter.name!r} is there already")
            seen.add(parameter.name)
            total += num_elements(parameter.shape)
        if total > bounds.MAX_PARAMETER_ELEMENTS:
            raise SpecError(f"operators[{index}]", f"more than {bounds.MAX_PARAMETER_ELEMENTS} parameter elements")


def _check_outputs(spec: spec_pb2.VNodeSpec, values: dict[str, allow_list.Value]) -> None:
    if not spec.outputs and not spec.HasField("loss"):
        raise SpecError("outputs", "expected at least one")
    seen: set[str] = set()
    for index, name in enumerate(spec.outputs):
        if name not in values:
            raise SpecError(f"outputs[{index}]", f"no value is called {bounds.shown(name)}")
        _unique(name, seen, f"outputs[{index}]")


def _check_loss(spec: spec_pb2.VNodeSpec, values: dict[str, allow_list.Value]) -> None:
    if spec.HasField("loss") == bool(spec.downstream):
        why = "only the last VNode owns the loss" if spec.downstream else "the last VNode owns the loss: expected one"
        raise SpecError("loss", why)
    if not spec.HasField("loss"):
        if spec.targets:
            raise SpecError("targets", "only the VNode that owns the loss takes targets")
        return
    allow_list.kind_of(spec.loss, "loss")
    entropy, path = spec.loss.cross_entropy, "loss.cross_entropy"
    logits = values.get(entropy.logits)
    if logits is None:
        raise SpecError(f"{path}.logits", f"no value is called {bounds.shown(entropy.logits)}")
    if logits.dtype not in FLOATS or len(logits.shape) != 1:
        found = f"{dtype_name(logits.dtype)} of {list(logits.shape)}"
        raise SpecError(f"{path}.logits", f"expected DTYPE_F32 or DTYPE_BF16 of shape [classes], got {found}")
    if entropy.target not in [target.name for target in spec.targets]:
        raise SpecError(f"{path}.target", f"no target is called {bounds.shown(entropy.target)}")
    for index, target in enumerate(spec.targets):
        _check_target(target, entropy.target, f"targets[{index}]")


def _check_target(target: tensor_pb2.TensorSpec, wanted: str, path: str) -> None:
    if target.name != wanted:
        raise SpecError(path, f"{target.name!r} is not read by the loss")
    if target.dtype != tensor_pb2.DTYPE_I64:
        raise SpecError(f"{path}.dtype", f"expected DTYPE_I64, got {dtype_name(target.dtype)}")
    if target.shape:
        raise SpecError(f"{path}.shape", f"expected one class a row, shape [], got {list(target.shape)}")


def _number(value: float, path: str, *, above: float | None = None, low: float = 0.0, below: float) -> None:
    inside = value > above if above is not None else value >= low
    if not (math.isfinite(value) and inside and value < below):
        bound = f"above {above}" if above is not None else f"of at least {low}"
        raise SpecError(path, f"expected a finite number {bound} and below {below}, got {value}")


def _check_optimizer(optimizer: spec_pb2.Optimizer) -> None:
    kind = allow_list.kind_of(optimizer, "optimizer")
    chosen, path = getattr(optimizer, kind), f"optimizer.{kind}"
    # Every figure is rounded to binary32 at the end: what would round to 0 or to infinity is refused here.
    _number(chosen.lr, f"{path}.lr", above=0.0, below=1e6)
    _number(chosen.weight_decay, f"{path}.weight_decay", below=1e6)
    if kind == "sgd":
        _number(chosen.momentum, f"{path}.momentum", below=1.0)
    else:
        _number(chosen.beta1, f"{path}.beta1", below=1.0)
        _number(chosen.beta2, f"{path}.beta2", below=1.0)
        _number(chosen.eps, f"{path}.eps", low=1e-30, below=1.0)
    schedule = optimizer.schedule
    for field in ("warmup_steps", "total_steps"):
        if getattr(schedule, field) > bounds.MAX_STEPS:
            raise SpecError(f"optimizer.schedule.{field}", f"expected at most {bounds.MAX_STEPS}")
    if 0 < schedule.total_steps < schedule.warmup_steps:
        why = f"expected 0 or at least the {schedule.warmup_steps} of warmup_steps, got {schedule.total_steps}"
        raise SpecError("optimizer.schedule.total_steps", why)


def _check_limits(spec: spec_pb2.VNodeSpec) -> None:
    limits = spec.limits
    if not 1 <= limits.max_rows <= bounds.MAX_ROWS:
        raise SpecError("limits.max_rows", f"expected 1 to {bounds.MAX_ROWS}, got {limits.max_rows}")
    if limits.microbatch_rows > limits.max_rows:
        why = f"expected at most the {limits.max_rows} of max_rows, got {limits.microbatch_rows}"
        raise SpecError("limits.microbatch_rows", why)
    _number(limits.cpu_s, "limits.cpu_s", above=0.0, below=bounds.MAX_SECONDS)
    _number(limits.wall_s, "limits.wall_s", above=0.0, below=bounds.MAX_SECONDS)
    if not 1 <= limits.memory_bytes <= bounds.MAX_MEMORY_BYTES:
        raise SpecError("limits.memory_bytes", f"expected 1 to {bounds.MAX_MEMORY_BYTES}, got {limits.memory_bytes}")
    needed = sizes.least_memory_bytes(spec)
    if limits.memory_bytes < needed:
        why = f"{limits.memory_bytes} cannot hold this VNode at {limits.max_rows} rows: at least {needed}"
        raise SpecError("limits.memory_bytes", why)
    if not 1 <= spec.checkpoint.keep <= bounds.MAX_KEEP:
        raise SpecError("checkpoint.keep", f"expected 1 to {bounds.MAX_KEEP}, got {spec.checkpoint.keep}")

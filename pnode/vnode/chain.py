"""A chain of VNodes: one model, cut into stages that fit each other. What training cannot split exactly is refused."""

from __future__ import annotations

from collections.abc import Sequence

from pnode.errors import SpecError
from pnode.v1 import spec_pb2
from pnode.vnode import allow_list, liveness
from pnode.vnode.spec import validate
from pnode.vnode.tensors import dtype_name

MAX_VNODES = 256


def validate_chain(specs: Sequence[spec_pb2.VNodeSpec]) -> None:
    """Raise SpecError, under `vnodes[i]`, unless every spec is valid and each one feeds the next.

    One run, seed, profile and optimizer; each `downstream` is the next id; outputs are the next inputs by name, dtype,
    shape and order; only the last owns the loss; no VNode, operator, value or parameter is there twice (a parameter
    used in two VNodes would be a tied weight); no value is read so that its gradient would depend on the cut.
    """
    if not 1 <= len(specs) <= MAX_VNODES:
        raise SpecError("vnodes", f"expected 1 to {MAX_VNODES}, got {len(specs)}")
    for index, spec in enumerate(specs):
        try:
            validate(spec)
        except SpecError as error:
            raise SpecError(f"vnodes[{index}].{error.path}", error.why) from error
    for index, spec in enumerate(specs):
        _check_shared(specs[0], spec, f"vnodes[{index}]")
    _check_unique(specs)
    for index, spec in enumerate(specs):
        _check_link(specs, index, spec)
    _check_fan_out(specs)


def _check_shared(first: spec_pb2.VNodeSpec, spec: spec_pb2.VNodeSpec, path: str) -> None:
    for field in ("run", "seed", "profile", "optimizer"):
        if getattr(spec, field) != getattr(first, field):
            raise SpecError(f"{path}.{field}", f"differs from that of {first.id!r}")


def _check_link(specs: Sequence[spec_pb2.VNodeSpec], index: int, spec: spec_pb2.VNodeSpec) -> None:
    path = f"vnodes[{index}]"
    downstream = specs[index + 1].id if index + 1 < len(specs) else ""
    if spec.downstream != downstream:
        wanted = repr(downstream) if downstream else "none: it is the last"
        raise SpecError(f"{path}.downstream", f"expected {wanted}, got {spec.downstream!r}")
    if downstream:
        _check_boundary(spec, specs[index + 1], f"vnodes[{index + 1}]")


def _check_boundary(upper: spec_pb2.VNodeSpec, lower: spec_pb2.VNodeSpec, path: str) -> None:
    values = allow_list.value_shapes(upper)
    if len(upper.outputs) != len(lower.inputs):
        why = f"expected the {len(upper.outputs)} outputs of {upper.id!r}, got {len(lower.inputs)}"
        raise SpecError(f"{path}.inputs", why)
    for index, (name, given) in enumerate(zip(upper.outputs, lower.inputs, strict=True)):
        here, value = f"{path}.inputs[{index}]", values[name]
        if given.name != name:
            raise SpecError(f"{here}.name", f"expected {name!r}, the output of {upper.id!r}; got {given.name!r}")
        if given.dtype != value.dtype:
            raise SpecError(f"{here}.dtype", f"expected {dtype_name(value.dtype)}, got {dtype_name(given.dtype)}")
        if tuple(given.shape) != value.shape:
            raise SpecError(f"{here}.shape", f"expected {list(value.shape)}, got {list(given.shape)}")


def _check_unique(specs: Sequence[spec_pb2.VNodeSpec]) -> None:
    ids: set[str] = set()
    operators: set[str] = set()
    parameters: set[str] = set()
    values = {given.name for given in specs[0].inputs}
    for index, spec in enumerate(specs):
        path = f"vnodes[{index}]"
        _once(spec.id, ids, f"{path}.id")
        for position, op in enumerate(spec.operators):
            here = f"{path}.operators[{position}]"
            _once(op.name, operators, f"{here}.name")
            _once(op.output, values, f"{here}.output")
            for parameter in allow_list.operator_parameters(op):
                _once(parameter.name, parameters, f"{here}.name", "tied weights cannot be split: parameter ")


def _once(name: str, seen: set[str], path: str, why: str = "") -> None:
    if name in seen:
        raise SpecError(path, f"{why}{name!r} is there already")
    seen.add(name)


def _check_fan_out(specs: Sequence[spec_pb2.VNodeSpec]) -> None:
    """Refuse a cut through a fan-out that would change the order of its gradient's sum.

    Uncut, a value's gradient is one chain over its readers, ascending. Each VNode hands up one gradient, so what
    comes from below can continue that chain only if it is of a single reader.
    """
    num_above: dict[str, int] = {}
    for index, spec in enumerate(specs):
        reads = liveness.num_reads(spec, liveness.training_roots(spec))
        passed_on = () if spec.HasField("loss") else spec.outputs
        for position, given in enumerate(spec.inputs):
            below = _num_reads_from(specs, index, given.name)
            if num_above.get(given.name, 0) > 0 and below > 1:
                why = f"{given.name!r} is read above this cut and {below} times below it: cut elsewhere"
                raise SpecError(f"vnodes[{index}].inputs[{position}]", why)
        for name, number in reads.items():
            num_above[name] = num_above.get(name, 0) + number - (name in passed_on)


def _num_reads_from(specs: Sequence[spec_pb2.VNodeSpec], index: int, name: str) -> int:
    """Reads of a value by the VNodes from `index` on, as far as it is handed down."""
    total = 0
    for spec in specs[index:]:
        if all(given.name != name for given in spec.inputs):
            break
        handed_on = not spec.HasField("loss") and name in spec.outputs
        total += liveness.num_reads(spec, liveness.training_roots(spec)).get(name, 0) - handed_on
    return total

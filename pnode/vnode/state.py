"""A VNode's state as bytes: safetensors in one canonical form, so that equal states are equal bytes.

    8 bytes little-endian: length of the header
    header: compact JSON, `__metadata__` first, tensors by ascending name, padded with spaces to 8 bytes
    the tensors' bytes in that order, without gaps

Tensors are f32 and named `param/<path>`, and after the first step `momentum_buffer/<path>` or `exp_avg/<path>` and
`exp_avg_sq/<path>`. Nothing of a generation, an epoch or a host is in it. Torch-free. Bytes from outside are hostile:
sizes are checked before anything is made of them, and whatever is wrong raises BlobCorrupt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pnode.errors import BlobCorrupt
from pnode.v1 import spec_pb2
from pnode.vnode import allow_list
from pnode.vnode.allow_list import Shape
from pnode.vnode.tensors import num_elements

FORMAT = "pnode-state-1"
MAX_HEADER_BYTES = 16 * 2**20
MAX_VERSION = 2**63 - 1
_CANONICAL_NAN = 0x7FC00000


class StateTensor(NamedTuple):
    """One tensor of a state: f32, its bytes little-endian in C order."""

    shape: Shape
    content: memoryview


class ParsedState(NamedTuple):
    """A state that is well formed; whether it fits a spec is another question."""

    vnode: str
    version: int
    profile: str
    tensors: dict[str, StateTensor]


def optimizer_tensors(optimizer: spec_pb2.Optimizer) -> tuple[str, ...]:
    """Names of the tensors that the optimizer keeps for each parameter."""
    if optimizer.WhichOneof("kind") == "adamw":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if optimizer.sgd.momentum > 0.0 else ()


def layout(spec: spec_pb2.VNodeSpec, version: int) -> dict[str, Shape]:
    """Names and shapes of a state's tensors, in its order. Version 0 is the initial state: no step was ever taken."""
    kinds = ("param", *(optimizer_tensors(spec.optimizer) if version > 0 else ()))
    shapes = {f"{kind}/{name}": shape for kind in kinds for name, shape, _ in allow_list.parameter_specs(spec)}
    return dict(sorted(shapes.items()))


def header(spec: spec_pb2.VNodeSpec, version: int) -> bytes:
    """The length and the header of the canonical form, ready for the tensors' bytes."""
    metadata = {"format": FORMAT, "profile": spec.profile, "version": str(version), "vnode": spec.id}
    document: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, shape in layout(spec, version).items():
        end = offset + 4 * num_elements(shape)
        document[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encode(spec: spec_pb2.VNodeSpec, version: int, contents: Mapping[str, memoryview]) -> bytes:
    """The state at `version` from its tensors' bytes, by name."""
    return b"".join([header(spec, version), *(contents[name] for name in layout(spec, version))])


def decode(spec: spec_pb2.VNodeSpec, state: bytes | memoryview) -> ParsedState:
    """A state that fits `spec` to the last bit of its header. Raises BlobCorrupt, naming what does not fit."""
    parsed = parse(state)
    for word, found, wanted in (("VNode", parsed.vnode, spec.id), ("profile", parsed.profile, spec.profile)):
        if found != wanted:
            raise BlobCorrupt(f"the state is of {word} {found[:128]!r}, expected {wanted!r}")
    wanted_layout = layout(spec, parsed.version)
    for name in sorted(wanted_layout.keys() - parsed.tensors.keys()):
        raise BlobCorrupt(f"the state has no tensor {name!r}")
    for name in sorted(parsed.tensors.keys() - wanted_layout.keys()):
        raise BlobCorrupt(f"the state has a tensor too many: {name[:128]!r}")
    for name, shape in wanted_layout.items():
        if parsed.tensors[name].shape != shape:
            raise BlobCorrupt(f"tensor {name!r} has shape {list(parsed.tensors[name].shape)}, expected {list(shape)}")
    wanted_header = header(spec, parsed.version)
    if state[: len(wanted_header)] != wanted_header:
        raise BlobCorrupt("the state's header is not in its canonical form")
    return parsed


def parse(state: bytes | memoryview) -> ParsedState:
    """Read a state without a spec. Raises BlobCorrupt."""
    view = memoryview(state).toreadonly()
    document, start = _document(view)
    metadata = document.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise BlobCorrupt(f"not a state of format {FORMAT}")
    vnode, profile, version = (metadata.get(key) for key in ("vnode", "profile", "version"))
    if not (isinstance(vnode, str) and isinstance(profile, str)):
        raise BlobCorrupt("the state names no VNode or no profile")
    tensors: dict[str, StateTensor] = {}
    offset = 0
    for name, entry in document.items():
        shape, offset, end = _entry(name, entry, offset)
        if end > len(view) - start:
            raise BlobCorrupt(f"the state is truncated in tensor {name[:128]!r}")
        tensors[name] = StateTensor(shape, _checked(name, view[start + offset : start + end]))
        offset = end
    if offset != len(view) - start:
        raise BlobCorrupt(f"the state has {len(view) - start - offset} bytes after its last tensor")
    return ParsedState(vnode, _version(version), profile, tensors)


def _document(view: memoryview) -> tuple[dict[str, Any], int]:
    """The header as a JSON object, and where the tensors' bytes begin."""
    if len(view) < 8:
        raise BlobCorrupt(f"the state is truncated: {len(view)} bytes")
    size = int.from_bytes(view[:8], "little")
    if size > min(len(view) - 8, MAX_HEADER_BYTES):
        raise BlobCorrupt(f"the state claims a header of {size} bytes in {len(view)}")
    try:
        document = json.loads(bytes(view[8 : 8 + size]).decode("ascii"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise BlobCorrupt("the state's header is not JSON") from error
    if not isinstance(document, dict):
        raise BlobCorrupt("the state's header is not a JSON object")
    return document, 8 + size


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name is given twice")
    return document


def _entry(name: str, entry: Any, offset: int) -> tuple[Shape, int, int]:
    """Shape, begin and end of one tensor, which must begin where the one before it ended."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or len(shape) > 8 or entry.get("dtype") != "F32":
        raise BlobCorrupt(f"tensor {name[:128]!r} is not F32 with a shape")
    if not all(type(dim) is int and 0 <= dim < 2**48 for dim in shape):
        raise BlobCorrupt(f"tensor {name[:128]!r} has a dimension that is no size")
    end = offset + 4 * num_elements(shape)
    if entry.get("data_offsets") != [offset, end]:
        raise BlobCorrupt(f"tensor {name[:128]!r} does not lie at bytes {offset} to {end}")
    return tuple(shape), offset, end


def _checked(name: str, content: memoryview) -> memoryview:
    bits = np.frombuffer(content, dtype="<u4")
    if bool(np.any(((bits & 0x7FFFFFFF) > 0x7F800000) & (bits != _CANONICAL_NAN))):
        raise BlobCorrupt(f"tensor {name[:128]!r} holds a NaN that is not canonical")
    return content


def _version(text: Any) -> int:
    if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= MAX_VERSION:
        return int(text)
    raise BlobCorrupt("the state's version is not a number")


def run_digest(states: Sequence[bytes | memoryview]) -> str:
    """SHA-256, in hex, of a run's whole state: the same however the model was cut into VNodes.

    The VNodes' tensors are merged and taken by ascending name; digested are the profile, the version, and each
    tensor's name, shape and bytes. Raises BlobCorrupt where the states do not belong together.
    """
    parsed = [parse(state) for state in states]
    merged: dict[str, StateTensor] = {}
    for one in parsed:
        if (one.version, one.profile) != (parsed[0].version, parsed[0].profile):
            raise BlobCorrupt("the states are not of one version and one profile")
        for name, tensor in one.tensors.items():
            if name in merged:
                raise BlobCorrupt(f"tensor {name[:128]!r} is in two states")
            merged[name] = tensor
    head = [(one.profile, one.version) for one in parsed[:1]]
    names = [(name, merged[name].shape) for name in sorted(merged)]
    digest = hashlib.sha256(json.dumps(["pnode-run-1", head, names], separators=(",", ":")).encode("ascii"))
    for name, _ in names:
        digest.update(merged[name].content)
    return digest.hexdigest()

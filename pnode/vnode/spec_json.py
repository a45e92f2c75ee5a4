"""JSON into protobuf messages, strictly: whatever does not fit is refused with the path of the offending field.

`google.protobuf.json_format` accepts repeated keys and numbers in strings like "NaN", and its errors name paths only
sometimes; a spec is written by people, so the path matters. The mapping is the standard one: field names as in the
.proto or in lowerCamelCase, 64-bit integers as numbers or as strings of digits, enums by name or by number.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from pnode.errors import SpecError
from pnode.vnode import bounds

# protobuf's stubs know one class of descriptors for each of its backends.
_Field = Any

_DIGITS = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
_INTEGERS |= {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_FLOATS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}


class _Object(NamedTuple):
    """A JSON object as it was written: a dict would hide repeated keys."""

    pairs: list[tuple[str, Any]]


def read_json(message: Message, text: str | bytes) -> None:
    """Fill `message` from JSON text. Raises SpecError with the path of what does not fit."""
    if len(text) > bounds.MAX_SPEC_BYTES:
        raise SpecError("spec", f"expected at most {bounds.MAX_SPEC_BYTES} bytes of JSON, got {len(text)}")
    try:
        document = json.loads(text, object_pairs_hook=_Object, parse_int=_integer, parse_constant=lambda _: math.nan)
    except RecursionError as error:
        raise SpecError("spec", "nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are among them
        raise SpecError("spec", f"not JSON: {error}") from error
    _fill(message, document, "")


def _integer(digits: str) -> int | float:
    # Converting a million digits takes long; no field has more than twenty.
    return int(digits) if len(digits) <= 20 else math.inf


def _fill(message: Message, value: Any, path: str) -> None:
    if not isinstance(value, _Object):
        raise SpecError(path or "spec", f"expected an object, got {_kind(value)}")
    fields = {name: field for field in message.DESCRIPTOR.fields for name in (field.name, field.json_name)}
    seen: dict[str, str] = {}
    for key, item in value.pairs:
        field = fields.get(key)
        here = f"{path}.{key[:60]}" if path else key[:60]
        if field is None:
            raise SpecError(here, "unknown field")
        _check_once(field, here, seen)
        if field.is_repeated:
            _fill_list(message, field, item, here)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            _fill(getattr(message, field.name), item, here)
        else:
            _set(message, field, item, here)


def _check_once(field: _Field, path: str, seen: dict[str, str]) -> None:
    oneof = field.containing_oneof
    slot = oneof.name if oneof is not None else f".{field.name}"
    if slot in seen:
        why = "given twice" if seen[slot] == field.name else f"only one {slot} may be given; {seen[slot]} is there"
        raise SpecError(path, why)
    seen[slot] = field.name


def _fill_list(message: Message, field: _Field, value: Any, path: str) -> None:
    if not isinstance(value, list):
        raise SpecError(path, f"expected a list, got {_kind(value)}")
    if len(value) > bounds.MAX_OPERATORS:
        raise SpecError(path, f"expected at most {bounds.MAX_OPERATORS} items, got {len(value)}")
    items = getattr(message, field.name)
    for index, item in enumerate(value):
        here = f"{path}[{index}]"
        if field.message_type is not None:
            _fill(items.add(), item, here)
        else:
            items.append(_scalar(field, item, here))


def _set(message: Message, field: _Field, value: Any, path: str) -> None:
    setattr(message, field.name, _scalar(field, value, path))


def _scalar(field: _Field, value: Any, path: str) -> Any:
    """The value for one scalar field. Python's bool is an int, so it is looked at first."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if isinstance(value, bool):
            return value
        raise SpecError(path, f"expected true or false, got {_kind(value)}")
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _string(value, path)
    if isinstance(value, bool):
        raise SpecError(path, f"expected a number, got {_kind(value)}")
    if field.cpp_type in _FLOATS:
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise SpecError(path, f"expected a finite number, got {_kind(value)}")
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field, value, path)
    return _whole(field, value, path)


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SpecError(path, f"expected a string, got {_kind(value)}")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        raise SpecError(path, "half of a surrogate pair is not text")
    return value


def _whole(field: _Field, value: Any, path: str) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if not isinstance(value, int):
        raise SpecError(path, f"expected a whole number, got {_kind(value)}")
    wide = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    bits = (64 if wide else 32) - signed
    low = -(2**bits) if signed else 0
    if not low <= value < 2**bits:
        raise SpecError(path, f"expected {low} to {2**bits - 1}, got {value}")
    return value


def _enum(field: _Field, value: Any, path: str) -> int:
    known = field.enum_type
    if known is not None and isinstance(value, str) and value in known.values_by_name:
        return int(known.values_by_name[value].number)
    if known is not None and isinstance(value, int) and value in known.values_by_number:
        return value
    names = ", ".join(known.values_by_name) if known is not None else ""
    raise SpecError(path, f"expected one of {names}; got {_kind(value)}")


def _kind(value: Any) -> str:
    if isinstance(value, _Object):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else bounds.shown(value)

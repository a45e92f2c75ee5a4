"""Types of configured values: text from the environment and YAML's own types alike, with units where people use them.

Each refuses in words that follow "key: ", as in "node.port: expected a whole number, got 'abc'".
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WITH_UNIT = re.compile(rf"({_NUMBER.pattern})\s*([A-Za-z]*)", re.ASCII)

_BYTES = {"": 1, "B": 1}
_BYTES |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
_BYTES |= {f"{letter}B": 1000**power for power, letter in ((1, "k"), (2, "M"), (3, "G"), (4, "T"))}
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def shown(value: Any) -> str:
    """A refused value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _refused(expected: str, value: Any) -> ValueError:
    if value == "":
        return ValueError(f"expected {expected}, got nothing")
    return ValueError(f"expected {expected}, got {shown(value)}")


def whole(value: Any) -> int:
    """3 or "3"; neither true nor 3.5."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,20}", value.strip(), re.ASCII):
        return int(value)
    raise _refused("a whole number", value)


def number(value: Any) -> float:
    """0.002, "2e-3" or 1; finite."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) and math.isfinite(float(value)):
        return float(value)
    raise _refused("a number", value)


def flag(value: Any) -> bool:
    """true or false, and their usual synonyms."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise _refused("true or false", value)


def text(value: Any) -> str:
    """Text. YAML makes numbers of what looks like one; those are asked for in quotes."""
    if isinstance(value, str):
        return value
    raise _refused("text (in quotes where it looks like a number)", value)


def size_bytes(value: Any) -> int:
    """4GiB, "64 MiB", or a plain number of bytes."""
    expected = "a size as 64MiB or 4GiB"
    amount, unit = _split(value, expected)
    if unit not in _BYTES:
        raise _refused(expected, value)
    exact = amount * _BYTES[unit]
    if not math.isfinite(exact) or exact != int(exact):
        raise _refused(expected, value)
    return int(exact)


def seconds(value: Any) -> float:
    """500ms, 30s, 5min, 1h, or a plain number of seconds."""
    expected = "a time as 500ms, 30s or 5min"
    amount, unit = _split(value, expected)
    if unit not in _SECONDS or not math.isfinite(amount):
        raise _refused(expected, value)
    return amount * _SECONDS[unit]


def _split(value: Any, expected: str) -> tuple[float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value, ""
    found = _WITH_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise _refused(expected, value)
    digits = found[1]
    # Whole numbers stay exact however large they are.
    return (int(digits) if digits.lstrip("+-").isdecimal() else float(digits)), found[5]


def nothing_as_none(value: Any) -> Any:
    """An environment variable that is set to nothing means that the key is not set."""
    return None if value == "" else value


Whole = Annotated[int, BeforeValidator(whole)]
Number = Annotated[float, BeforeValidator(number)]
Flag = Annotated[bool, BeforeValidator(flag)]
Text = Annotated[str, BeforeValidator(text)]
Bytes = Annotated[int, BeforeValidator(size_bytes), Field(ge=1, le=2**48)]
Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=86_400)]
Percent = Annotated[float, BeforeValidator(number), Field(ge=0, le=100)]
Port = Annotated[int, BeforeValidator(whole), Field(ge=0, le=65535)]
OptionalText = Annotated[Text | None, BeforeValidator(nothing_as_none)]

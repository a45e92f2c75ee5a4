"""What pydantic found wrong, in one line for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pnode.config.keys import env_name
from pnode.config.units import shown


class Source(NamedTuple):
    """Where values came from: the composed configuration before resolving, and what the user gave by key."""

    composed: DictConfig
    given: Mapping[str, str]

    def of(self, key: str) -> str:
        """Words for the place where the value of a key came from, empty for a default."""
        if key in self.given:
            return f" (from {self.given[key]})"
        if env_name(key) in os.environ and OmegaConf.select(self.composed, key, default=None) is not None:
            return f" (from the environment variable {env_name(key)})"
        return ""


def one_line(message: str) -> str:
    """The message without its line breaks, and without Hydra's and OmegaConf's footnotes."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https://"))]
    return (
        "; ".join(kept).removeprefix("KeyError raised while resolving interpolation: ").strip('"')[:500]
        or "cannot be composed"
    )


def sentence(error: ValidationError, source: Source) -> str:
    """The first fault with its key, and how many more there are."""
    faults = error.errors(include_url=False)
    first = faults[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "[" not in part)
    more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{key}: {_words(first)}{source.of(key)}{more}"


def _words(fault: ErrorDetails) -> str:
    got, context = shown(fault["input"]), fault.get("ctx", {})
    number = str(fault["input"])[:60]
    match fault["type"]:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "is missing"
        case "literal_error":
            return f"expected {str(context['expected']).replace(chr(39), '')}, got {got}"
        case "greater_than_equal":
            return f"expected at least {context['ge']}, got {number}"
        case "greater_than":
            return f"expected more than {context['gt']}, got {number}"
        case "less_than_equal":
            return f"expected at most {context['le']}, got {number}"
        case "less_than":
            return f"expected less than {context['lt']}, got {number}"
        case "string_too_short":
            return "expected text, got nothing"
        case _:
            return f"{fault['msg']}, got {got}"

"""The self-test: every public operator, forward and backward, on fixed inputs, against digests kept in the package.

`python -m samebits.selftest --json` prints `{"profile", "digest", "operators": {name: sha256}}` and exits 1 where an
operator's digest is not the golden one. Equal digests on two machines are what the package promises; the inputs are
integer arithmetic, so an operator that differs is to blame itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from samebits import PROFILE
from samebits.digest import digest
from samebits.selftest import _casts, _drawn, _elements, _heads, _images, _loss, _optimizers, _products, _random, _rows
from samebits.selftest._registry import CASES
from samebits.selftest._values import Values

__all__ = ["GOLDEN", "Report", "golden", "run"]

GOLDEN = Path(__file__).with_name("golden.json")
PARTS = (
    _casts,
    _drawn,
    _elements,
    _heads,
    _images,
    _loss,
    _optimizers,
    _products,
    _random,
    _rows,
)  # whose import registers their cases


class Report(NamedTuple):
    """What a run of the self-test found."""

    operators: Mapping[str, str]
    """SHA-256 over every result, by operator."""

    @property
    def digest(self) -> str:
        """One SHA-256 for all: of the lines "name digest", names ascending."""
        lines = [f"{name} {self.operators[name]}\n" for name in sorted(self.operators)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def differing(self, expected: Mapping[str, str]) -> list[str]:
        """The operators whose digest is another one, or which only one side knows."""
        names = sorted({*self.operators, *expected})
        return [name for name in names if self.operators.get(name) != expected.get(name)]

    def as_json(self) -> str:
        """The report as one line."""
        operators = dict(sorted(self.operators.items()))
        return json.dumps({"profile": PROFILE, "digest": self.digest, "operators": operators})


def run(names: Iterable[str] | None = None) -> Report:
    """Compute the digest of every operator, or of those named, with the threads that are set."""
    chosen = sorted(CASES) if names is None else names
    return Report({name: _digest_of(name) for name in chosen})


def _digest_of(name: str) -> str:
    results = CASES[name](Values(name))
    return digest({str(i): result.detach() for i, result in enumerate(results)})


def golden() -> Report:
    """The digests that every machine must find."""
    return Report(json.loads(GOLDEN.read_text(encoding="ascii")))

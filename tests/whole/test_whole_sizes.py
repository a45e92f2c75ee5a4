"""The house rules that can be counted: short files with a caption, names that say something."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_LINES = 320
EMPTY_WORDS = {"manager", "managers", "util", "utils", "helper", "helpers", "handle", "data", "common", "misc"}

FILES = [
    path
    for folder in ("pnode", "kernels", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "_pb2" not in path.name
]


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_names_say_something() -> None:
    names = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert {name for name in names if EMPTY_WORDS & set(name.split("_"))} == set()


def test_files_have_a_caption() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
    assert [name for name, text in texts.items() if text and ast.get_docstring(ast.parse(text)) is None] == []

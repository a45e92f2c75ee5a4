"""The README's table of keys is the configuration's, and what it points at exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

from readme_keys import table  # noqa: E402 - found by the line above


def test_every_key_and_environment_variable_is_listed() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").endswith(table() + "\n")


def test_links_lead_somewhere() -> None:
    for page in ("README.md", "ARCHITECTURE.md", "kernels/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page} points at {target}"

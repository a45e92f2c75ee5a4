"""Prints the README's table of keys: `python tests/tools/readme_keys.py`. A test holds the README equal to it."""

from __future__ import annotations

import sys

from pnode.manual import all_keys


def table() -> str:
    """One row a key: its name, environment variable, default and meaning."""
    rows = [
        f"| `{key.name}` | `{key.env}` | {f'`{key.default}`' if key.default else ''} | {key.help} |"
        for key in all_keys()
    ]
    return "\n".join(["| key | environment | default | meaning |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")

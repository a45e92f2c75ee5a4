"""The committed generated code is what protos/generate.sh writes, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def generated(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "pnode" / "v1").glob("*_pb2*.py*")}


def test_generated_code_is_committed(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "protos" / "generate.sh"), str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, check=True, timeout=60)
    committed, fresh = generated(ROOT), generated(tmp_path)
    assert committed.keys() == fresh.keys()
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "run `make proto` and commit"

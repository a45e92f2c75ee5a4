"""The fuzzer's targets hold for good bytes and for damaged ones; `make fuzz` goes on where this ends."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_hostile_bytes import damaged

from pnode.transport import codec
from pnode.v1 import vnode_pb2
from tests.fuzz import __main__ as fuzz
from tests.fuzz import targets

ROOT = Path(__file__).parents[2]


def test_the_command_line_knows_every_target() -> None:
    assert tuple(targets.TARGETS) == fuzz.TARGETS


@pytest.mark.parametrize("name", targets.TARGETS)
@given(data=st.data())
def test_good_bytes_and_damaged_ones(name: str, data: st.DataObject) -> None:
    target = targets.TARGETS[name]
    target.check(data.draw(st.sampled_from(target.seeds)))
    target.check(data.draw(damaged(data.draw(st.sampled_from(target.seeds)))))


def test_a_target_finds_a_parser_that_takes_a_payload_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that cannot fail would prove nothing."""
    empty = codec.Parcel(vnode_pb2.ForwardRequest())
    monkeypatch.setattr(codec, "decode", lambda kind, raw: empty)
    with pytest.raises(AssertionError):
        targets.TARGETS["calls"].check(targets.TARGETS["calls"].seeds[0])


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is installed by make fuzz alone")
def test_the_fuzzer_runs_and_keeps_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "frames", "--seconds", "1", "--corpus", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("found nothing\n")
    assert len(list((tmp_path / "frames").iterdir())) > 2

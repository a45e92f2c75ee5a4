"""Logs: plain or JSON, and without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from pnode.observe import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def written(form: str, message: str, *args: object, error: Exception | None = None) -> str:
    """What one warning looks like."""
    stream = io.StringIO()
    logs.configure("info", form, stream)
    logging.getLogger("pnode.node.chain").warning(message, *args, exc_info=error)
    return stream.getvalue()


def test_plain_lines_name_level_and_place() -> None:
    line = written("plain", "lost %s", "stage2")
    assert line.endswith("warning node.chain: lost stage2\n")


def test_json_lines_can_be_read_by_machines() -> None:
    entry = json.loads(written("json", "two\nlines", error=ValueError("why")))
    assert entry["message"] == "two\nlines"
    assert entry["level"] == "warning"
    assert "ValueError: why" in entry["traceback"]


@pytest.mark.parametrize("form", ["plain", "json"])
def test_secrets_are_blotted_out(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    text = written(form, "signed with %s", "hunter2hunter2", error=ValueError("http://me:hunter3@host/x"))
    assert "hunter2" not in text
    assert "hunter3" not in text
    assert "***" in text


def test_libraries_stay_quiet() -> None:
    stream = io.StringIO()
    logs.configure("debug", "plain", stream)
    logging.getLogger("botocore.auth").debug("a signed request")
    assert stream.getvalue() == ""

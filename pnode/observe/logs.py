"""Logs on stderr: plain lines for people, or JSON lines for machines. Never secrets."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from typing import TextIO

# Libraries whose finer logs hold signed requests, or say nothing to an operator.
_QUIET = ("botocore", "boto3", "s3transfer", "urllib3", "grpc", "matplotlib", "numba", "hydra", "PIL")
_SECRET_NAMES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_LEAST_SECRET = 8
_USERINFO = re.compile(r"(://)[^/\s@]+@")


def configure(level: str = "info", form: str = "plain", stream: TextIO | None = None) -> None:
    """Send the process's logs to `stream`, stderr by default. `form` is `plain` or `json`."""
    target = logging.StreamHandler(stream if stream is not None else sys.stderr)
    target.setFormatter(_Json() if form == "json" else _Plain())
    target.addFilter(_worth_telling)
    logging.basicConfig(level=level.upper(), handlers=[target], force=True)


def _worth_telling(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _QUIET


def blotted(text: str) -> str:
    """The text without credentials that found their way into it."""
    for name in _SECRET_NAMES:
        secret = os.environ.get(name, "")
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, "***")
    return _USERINFO.sub(r"\1***@", text)


class _Plain(logging.Formatter):
    """`12:00:01.250 info  node.membership: registered with the orchestrator`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("pnode.")
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():7} {name}: {record.getMessage()}"
        return blotted(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


class _Json(logging.Formatter):
    """One JSON object a line: time (Unix seconds), level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": blotted(record.getMessage()),
        }
        if record.exc_info:
            entry["traceback"] = blotted(self.formatException(record.exc_info))
        return json.dumps(entry)

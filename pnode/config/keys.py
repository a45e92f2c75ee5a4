"""The list of all keys: name, environment variable, default and help, read from conf/ and the schema themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

import pnode
from pnode.config.schema import Settings

# Environment names that people know from elsewhere; every other key a.b.c is PNODE_A_B_C.
WELL_KNOWN = {
    "node.uuid": "PNODE_UUID",
    "node.port": "PNODE_PORT",
    "orchestrator.address": "ORCHESTRATOR_ADDRESS",
    "store.s3.bucket": "S3_BUCKET",
}
_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:([A-Z0-9_]+),(.*)\}", re.ASCII)


class Key(NamedTuple):
    """One key. `env` and `default` are empty where conf/ fixes the value."""

    name: str
    env: str
    default: str
    help: str


def conf_dir() -> Path:
    """Hydra's configuration: inside the package in a wheel, beside it in a checkout."""
    package = Path(pnode.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def env_name(key: str) -> str:
    """The environment variable of a key."""
    return WELL_KNOWN.get(key) or "PNODE_" + key.upper().replace(".", "_")


def jobs() -> list[str]:
    """What `job=` may name."""
    return sorted(path.stem for path in (conf_dir() / "job").glob("*.yaml"))


def keys(job: str = "digits") -> list[Key]:
    """Every key, in the order of conf/config.yaml, then those of the job."""
    plain = _read(conf_dir() / "config.yaml") | {"job": _read(conf_dir() / "job" / f"{job}.yaml")}
    return [_key(name, raw) for name, raw in _leaves(plain) if name.split(".")[0] != "defaults"]


def _read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict), f"{path} is a mapping"
    return content


def _leaves(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _key(name: str, raw: Any) -> Key:
    found = _FROM_ENVIRONMENT.fullmatch(str(raw))
    env, default = (found[1], found[2].strip("'")) if found else ("", str(raw))
    return Key(name, env, "" if default == "null" else default, _help(name))


def _help(name: str) -> str:
    model: type[BaseModel] = Settings
    *sections, last = name.split(".")
    for section in sections:
        inner = model.model_fields[section].annotation
        assert isinstance(inner, type), f"{name} lies in a section"
        assert issubclass(inner, BaseModel), f"{name} lies in a section"
        model = inner
    return model.model_fields[last].description or ""

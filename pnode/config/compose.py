"""From command line, file, environment and conf/ to checked Settings. Whatever is wrong is one line: a ConfigError."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from pnode.config.faults import Source, one_line, sentence
from pnode.config.keys import conf_dir, jobs, keys
from pnode.config.schema import Settings
from pnode.config.units import shown
from pnode.errors import ConfigError

_MAX_FILE_BYTES = 1 << 20


class Setting(NamedTuple):
    """One key given by the user, and where."""

    key: str
    value: Any
    source: str


def load(overrides: Sequence[str] = (), file: str | None = None) -> Settings:
    """Settings from `key=value` overrides, over an optional YAML file, over the environment, over conf/.

    Raises ConfigError with one line that names the key and, where the value came from there, its environment
    variable.
    """
    given = [*(_from_file(file) if file else ()), *map(_from_override, overrides)]
    known = {key.name for key in keys()}
    for setting in given:
        _check_known(setting, known)
    composed = _compose(given)
    sources = {setting.key: setting.source for setting in given}
    try:
        return Settings.model_validate(_resolved(composed))
    except ValidationError as error:
        raise ConfigError(sentence(error, Source(composed, sources))) from None


# What the user gave


def _from_override(text: str) -> Setting:
    source = "the command line"
    if "=" not in text.lstrip("+") or text.startswith("~"):
        raise ConfigError(f"{shown(text)}: expected key=value")
    key, _, raw = text.lstrip("+").partition("=")
    return Setting(key, None if raw == "null" else _unquoted(raw), source)


def _unquoted(raw: str) -> str:
    """Text as it stands, but for what somebody put in quotes as Hydra's grammar has them.

    Keys hold single values and their types read text, so lists, sweeps and functions of that grammar mean nothing.
    """
    if raw[:1] not in ("'", '"'):
        return raw
    try:
        override = OverridesParser.create().parse_override(f"key={raw}")
    except HydraException:
        return raw
    value = override.value()
    return value if isinstance(value, str) else raw


def _from_file(file: str) -> list[Setting]:
    try:
        path = Path(file).expanduser()
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"--config {file}: larger than {_MAX_FILE_BYTES} bytes")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--config {file}: not YAML: {one_line(str(error))}") from None
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file}: expected keys and values, got {shown(content)}")
    return [Setting(key, value, file) for key, value in _leaves(content, "")]


def _leaves(mapping: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_known(setting: Setting, known: set[str]) -> None:
    """Raise ConfigError for a key that does not exist, or a value that is no single one."""
    key, value, source = setting
    sections = {name.rpartition(".")[0] for name in known} | {"store"}
    if key == "job":
        if value not in jobs():
            raise ConfigError(f"job: no job {shown(value)}; there is {', '.join(jobs())} (from {source})")
    elif key in sections:
        raise ConfigError(f"{key}: is a section; name one of its keys, as {key}.{_first(key, known)} (from {source})")
    elif key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; python -m pnode --keys lists all"
        raise ConfigError(f"{key[:80]}: unknown key (from {source}){hint}")
    elif isinstance(value, dict | list):
        raise ConfigError(f"{key}: expected a single value, got {shown(value)} (from {source})")


def _first(section: str, known: set[str]) -> str:
    return min(name.removeprefix(f"{section}.") for name in known if name.startswith(f"{section}."))


# Hydra


def _compose(given: Sequence[Setting]) -> DictConfig:
    overrides = [f"{key}={_quoted(key, value)}" for key, value, _ in given]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir().resolve())):
            return compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        wrong = os.environ.get("PNODE_JOB")
        if wrong is not None and wrong not in jobs():
            where = "(from the environment variable PNODE_JOB)"
            raise ConfigError(f"job: no job {shown(wrong)}; there is {', '.join(jobs())} {where}") from None
        raise ConfigError(one_line(str(error.__cause__ or error))) from None


def _quoted(key: str, value: Any) -> str:
    """A value in Hydra's grammar, whatever is in it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float) or key == "job":
        return str(value)
    # A backslash counts as one only before a quote, and the closing quote is one too.
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
    return f"'{text}'"


def _resolved(composed: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise ConfigError(f"{key}: {one_line(str(error))}") from None

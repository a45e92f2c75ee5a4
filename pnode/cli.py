"""The command line: `python -m pnode role=node ...`. Whatever is wrong is one line on stderr and exit 2."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from pnode.errors import ConfigError, PNodeError

if TYPE_CHECKING:
    from pnode.config import Settings

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130


@dataclass
class Arguments:
    """The command line, taken apart."""

    overrides: list[str] = field(default_factory=list)
    file: str | None = None
    parent: int | None = None
    show: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 1 failed, 2 wrong configuration, 130 interrupted."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        return _fail(error.message, EXIT_CONFIG)
    except PNodeError as error:
        return _fail(f"{error.reason}: {error.message}", EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    if arguments.show == "version":
        sys.stdout.write(f"pnode {metadata.version('pnode')}\n")
        return 0
    if arguments.show is not None:
        from pnode.manual import manual  # noqa: PLC0415 - a node does not need it

        sys.stdout.write(manual(every_key=arguments.show == "keys"))
        return 0
    if arguments.parent is not None:
        _live_only_with(arguments.parent)
    return _run(arguments)


def parse(argv: Sequence[str]) -> Arguments:
    """Raises ConfigError for an option that does not exist."""
    arguments = Arguments()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        match name:
            case "-h" | "--help":
                if value not in ("", "all"):
                    raise ConfigError(f"{word}: --help or --help=all is expected")
                arguments.show = "keys" if value else "help"
            case "--keys":
                arguments.show = "keys"
            case "--version":
                arguments.show = "version"
            case "--config":
                arguments.file = value or _next(rest, "--config", "a YAML file")
            case "--parent":
                # Of the devnet's children: they end with it, however it ends.
                arguments.parent = _pid(value or _next(rest, "--parent", "a process id"))
            case _ if word.startswith("-"):
                raise ConfigError(f"{word}: unknown option; settings are key=value, and --help shows them")
            case _:
                arguments.overrides.append(word)
    return arguments


def _next(rest: list[str], option: str, what: str) -> str:
    if not rest:
        raise ConfigError(f"{option}: {what} is expected")
    return rest.pop(0)


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"--parent: a process id is expected, got {text[:40]!r}")
    return int(text)


def _live_only_with(parent: int) -> None:
    from pnode.sandbox.confinement import die_with_parent  # noqa: PLC0415 - of children only

    if not die_with_parent(parent):
        raise ConfigError(f"--parent: process {parent} is not the parent of this one")


def _run(arguments: Arguments) -> int:
    from pnode.config import load  # noqa: PLC0415 - --version and wrong options need not wait for Hydra
    from pnode.observe import logs  # noqa: PLC0415

    settings = load(arguments.overrides, arguments.file)
    logs.configure(settings.log.level, settings.log.format)
    # A crash in compiled code must not end without a word.
    faulthandler.enable()
    logging.getLogger(__name__).debug("settings: %s", settings)
    return _role(settings, lambda: load(arguments.overrides, arguments.file))


def _role(settings: Settings, reread: Callable[[], Settings]) -> int:
    """Start the role. Each imports only what it needs: a node's front never sees torch."""
    from pnode import roles  # noqa: PLC0415

    start: dict[str, Callable[[Settings], int]] = {
        "node": lambda settings: roles.node(settings, reread),
        "orchestrator": roles.orchestrator,
        "devnet": roles.devnet,
        "selftest": roles.selftest,
    }
    return start[settings.role](settings)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"pnode: {message}\n")
    return code

"""What `--help` and `--keys` say."""

from __future__ import annotations

import textwrap

from pnode.config import Key, keys

_WIDTH = 120
# The keys that matter to somebody who begins, by role.
_SHORT = {
    "node": ("orchestrator.address", "node.port", "node.uuid", "node.data_dir", "limits.memory", "device"),
    "orchestrator": ("orchestrator.port", "orchestrator.heartbeat_s", "store.url", "store.s3.bucket"),
    "selftest": ("node.num_threads",),
    "devnet": ("job", "job.stages", "job.steps", "devnet.nodes", "devnet.kill", "devnet.folder"),
}
_ROLES = {
    "node": "lend this machine: serve VNodes to the network that an orchestrator keeps (the default)",
    "orchestrator": "keep a network: membership, placement, recovery",
    "selftest": "say whether this machine computes samebits to the bit; exit 1 where it does not",
    "devnet": "everything on this machine: train a job on three PNodes, lose one, end at the same digest",
}
_HEAD = """\
PNode: lend a machine to a decentralised neural network, with the same bits on every machine.

  python -m pnode [key=value ...] [--config FILE]

  python -m pnode role=devnet job=digits
  python -m pnode role=orchestrator orchestrator.port=50050
  python -m pnode orchestrator.address=127.0.0.1:50050 limits.memory=4GiB
"""
_FOOT = """\
  --config FILE    YAML with any of the keys; below the command line, above the environment and the defaults
  --keys           all keys (also --help=all)
  --version        the version

Every key has an environment variable. Sizes: 64MiB, 4GiB. Times: 500ms, 30s, 5min. Exit codes: 0 done, 1 failed,
2 wrong configuration, 130 interrupted.
"""


def manual(*, every_key: bool) -> str:
    """The short help, or every key with its environment variable, default and meaning."""
    if every_key:
        return _HEAD + "\n" + "\n".join(_table(all_keys())) + "\n\n" + _FOOT
    known = {key.name: key for key in all_keys()}
    parts = [_HEAD]
    for role, purpose in _ROLES.items():
        parts.append(f"role={role}: {purpose}\n\n" + "\n".join(_table([known[name] for name in _SHORT[role]])) + "\n")
    return "\n".join([*parts, _FOOT])


def all_keys() -> list[Key]:
    """Every key, in the order of the configuration."""
    return [Key("job", "PNODE_JOB", "digits", "what to train: digits"), *keys()]


def _table(rows: list[Key]) -> list[str]:
    names = max(len(f"{row.name}={row.default}") for row in rows) + 2
    envs = max(len(row.env) for row in rows) + 2
    lines: list[str] = []
    for row in rows:
        shown = f"{row.name}={row.default}" if row.default else row.name
        head = f"  {shown:<{names}}{row.env:<{envs}}"
        lines += textwrap.wrap(row.help, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [head]
    return lines

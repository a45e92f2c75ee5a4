"""Imports point one way: kernels <- vnode <- sandbox, storage and transport side by side, and fronts without torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

FOUNDATION = {"errors", "v1", "version"}
PARTS = {"samebits", "vnode", "sandbox", "security", "storage", "transport", "node", "orchestrator", "client"}

# Who may import whom, at whatever moment. Whoever is missing here may import nothing of ours; `version` is
# pnode/__init__.py. Roles and the command line start a devnet, which starts their like: only not while importing.
ALLOWED = {
    "vnode": FOUNDATION | {"samebits"},
    "sandbox": FOUNDATION | {"samebits", "vnode"},
    "security": FOUNDATION,
    "storage": FOUNDATION,
    "transport": FOUNDATION | {"vnode", "observe", "security"},
    "node": FOUNDATION | {"vnode", "sandbox", "security", "storage", "transport", "observe"},
    "orchestrator": FOUNDATION | {"vnode", "security", "storage", "transport"},
    "client": FOUNDATION | {"vnode", "transport"},
    "observe": FOUNDATION,
    "config": FOUNDATION,
    "manual": FOUNDATION | {"config"},
    "jobs": FOUNDATION | {"vnode", "client", "config"},
    "devnet": FOUNDATION | PARTS | {"config", "jobs", "observe", "roles", "cli"},
    "roles": FOUNDATION | PARTS | {"config", "jobs", "observe", "devnet"},
    "cli": FOUNDATION | PARTS | {"config", "jobs", "observe", "devnet", "roles", "manual"},
    "__main__": {"cli"},
}

# Whose business a library is, and nobody else's.
LIBRARIES = {
    "boto3": {"storage"},
    "botocore": {"storage"},
    "cryptography": {"security"},
    "grpc": {"transport", "v1"},
    "hydra": {"config"},
    "jwt": {"security"},
    "numba": {"samebits", "sandbox"},
    "torch": {"samebits", "vnode", "sandbox", "client", "devnet"},
}

FRONTS = [
    "pnode.node",
    "pnode.security",
    "pnode.transport",
    "pnode.storage",
    "pnode.orchestrator",
    "pnode.config",
    "pnode.cli",
]


def imports(*, at_start_only: bool = False) -> Iterator[tuple[str, str, str]]:
    """Where, by which part, of which other part or library; those in functions too, unless `at_start_only`."""
    for base, package in ((ROOT, "pnode"), (ROOT / "kernels", "samebits")):
        for path in sorted((base / package).rglob("*.py")):
            importer = part(".".join(path.relative_to(base).with_suffix("").parts))
            tree = ast.parse(path.read_text())
            for node in tree.body if at_start_only else ast.walk(tree):
                for imported in map(part, names(node)):
                    if imported != importer:
                        yield str(path.relative_to(ROOT)), importer, imported


def names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def part(name: str) -> str:
    """The package below pnode, or the library."""
    first, *rest = name.split(".")
    if first != "pnode":
        return first
    is_part = rest and ((ROOT / "pnode" / rest[0]).is_dir() or (ROOT / "pnode" / f"{rest[0]}.py").exists())
    return rest[0] if is_part and rest[0] != "__init__" else "version"


def test_parts_import_what_they_may() -> None:
    ours = set(ALLOWED) | PARTS | FOUNDATION
    wrong = [each for each in imports() if each[2] in ours and each[2] not in ALLOWED.get(each[1], set())]
    assert wrong == []


def test_libraries_stay_with_those_whose_business_they_are() -> None:
    wrong = [each for each in imports() if each[2] in LIBRARIES and each[1] not in LIBRARIES[each[2]]]
    assert wrong == []


def test_imports_run_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for _, importer, imported in imports(at_start_only=True):
        graph.setdefault(importer, set()).add(imported)
    graphlib.TopologicalSorter(graph).prepare()


def test_fronts_start_without_torch() -> None:
    code = f"""if True:
        import importlib, pkgutil, sys
        for name in {FRONTS}:
            module = importlib.import_module(name)
            for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
                importlib.import_module(found.name)
            assert not {{"torch", "samebits", "numba"}} & set(sys.modules), name
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

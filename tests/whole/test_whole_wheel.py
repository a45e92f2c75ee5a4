"""The wheel holds all that runs and nothing else at top level, and runs from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=100, stdout=subprocess.DEVNULL)
    (built,) = folder.glob("*.whl")
    return built


def python_of(venv: Path) -> Path:
    """The interpreter of a fresh and empty virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    return venv / "bin" / "python"


def run_elsewhere(python: Path, folder: Path, *arguments: str) -> str:
    """What the installed pnode prints, away from the source tree and from this environment's variables."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PNODE"))}
    done = subprocess.run(
        [python, *arguments], cwd=elsewhere, env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_else_at_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pnode", "samebits"}
    assert len(tops) == 3


def test_all_that_runs_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for base, package in ((ROOT, "pnode"), (ROOT / "kernels", "samebits")):
        files = [path for path in (base / package).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {path.relative_to(base).as_posix() for path in files} <= names
    conf = {f"pnode/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert conf
    assert conf <= names
    assert "pnode/jobs/digits.safetensors" in names
    assert [name for name in names if name.endswith((".pyc", ".so", ".nbi", ".nbc"))] == []


def test_it_runs_from_any_directory(wheel: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path / "venv")
    # Its dependencies are those of this environment: a path file names their folder, whose own path files, and with
    # them the source tree, do not count there.
    site = run_elsewhere(python, tmp_path, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, timeout=60)
    where = run_elsewhere(python, tmp_path, "-c", "import pnode, samebits; print(pnode.__file__, samebits.__file__)")
    assert all(path.startswith(site) for path in where.split())
    assert "role=" in run_elsewhere(python, tmp_path, "-m", "pnode", "--help")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_installs_into_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    python = python_of(tmp_path / "venv")
    command = [*PIP, "--python", str(python), "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(command, check=True, timeout=1000)
    assert "role=" in run_elsewhere(python, tmp_path, "-m", "pnode", "--help")
    names = "import pkgutil, pnode; print(*(each.name for each in pkgutil.walk_packages(pnode.__path__, 'pnode.')))"
    assert "pnode.v1.node_pb2" in run_elsewhere(python, tmp_path, "-c", names).split()

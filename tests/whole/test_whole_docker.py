"""Both images' recipes are clean under hadolint and run as nobody in particular. Building them is another matter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ["Dockerfile.cpu", "Dockerfile.cuda"]


def instructions(recipe: str, name: str) -> list[str]:
    lines = (ROOT / recipe).read_text().splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_hadolint_finds_nothing(recipe: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / recipe], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_is_pinned_and_not_root(recipe: str) -> None:
    bases = {base.split()[0] for base in instructions(recipe, "FROM")}
    assert len(bases) == 1
    assert bases.pop().startswith("python:3.11.")
    assert int(instructions(recipe, "USER")[-1]) > 0
    assert instructions(recipe, "ENTRYPOINT") == ['["python", "-m", "pnode"]']


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_copied_is_there_and_let_in(recipe: str) -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for copied in instructions(recipe, "COPY"):
        sources = [] if copied.startswith("--from") else copied.split()[:-1]
        assert set(sources) <= let_in
        assert all((ROOT / source).exists() for source in sources)

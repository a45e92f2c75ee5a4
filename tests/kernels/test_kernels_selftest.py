"""The self-test covers every public operator, agrees with its golden digests, and names what differs."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import samebits
import torch
from samebits import optim, random, selftest
from samebits.selftest import Report
from samebits.selftest._registry import CASES, both
from samebits.selftest._values import Values

PACKAGE = Path(samebits.__file__).parent
LIMIT_S = 280  # of a run that compiles everything anew
# Public callables that compute no result of the contract.
NO_OPERATORS = {"canary", "canonical_", "copy_canonical_", "digest", "get_num_threads", "set_num_threads", "warm"}
NO_OPERATORS |= {"optim.power", "random.site", "convert", "CannotConvert"}


def public_operators() -> set[str]:
    """Every public callable of the package, of its optimizers and of its random numbers."""
    names = {name for name in samebits.__all__ if callable(getattr(samebits, name))}
    names |= {f"optim.{name}" for name, made in vars(optim).items() if _own_optimizer(name, made)}
    return names | {f"random.{name}" for name, made in vars(random).items() if _own_function(random, name, made)}


def _own_optimizer(name: str, made: object) -> bool:
    public_class = inspect.isclass(made) and issubclass(made, torch.optim.Optimizer) and not name.startswith("_")
    return public_class or _own_function(optim, name, made)


def _own_function(module: object, name: str, made: object) -> bool:
    listed = getattr(module, "__all__", None)
    own = inspect.isfunction(made) and made.__module__ == getattr(module, "__name__", "")
    return own and (name in listed if listed is not None else not name.startswith("_"))


def test_every_public_operator_is_covered() -> None:
    assert public_operators() - NO_OPERATORS - set(CASES) == set()
    assert set(selftest.golden().operators) == set(CASES)


@pytest.fixture(scope="module")
def report() -> Report:
    return selftest.run()


def test_it_gives_the_golden_digests(report: Report) -> None:
    assert report.differing(selftest.golden().operators) == []
    assert report.digest == selftest.golden().digest


def test_it_gives_them_with_two_threads(shared_out: None) -> None:
    assert selftest.run().differing(selftest.golden().operators) == []


def test_one_bit_of_one_result_changes_its_digest(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    def flipped(values: Values) -> list[torch.Tensor]:
        results = [result.detach().clone() for result in case(values)]
        results[-1].reshape(-1).view(torch.int32)[-1] ^= 1
        return results

    case = CASES["softmax"]
    monkeypatch.setitem(CASES, "softmax", lambda values: iter(flipped(values)))
    changed = selftest.run()
    assert changed.differing(report.operators) == ["softmax"]
    assert changed.digest != report.digest


def test_what_only_one_side_knows_differs() -> None:
    assert Report({"a": "1", "b": "2"}).differing({"b": "2", "c": "3"}) == ["a", "c"]


def test_values_are_what_they_say() -> None:
    values = Values("a test")
    assert not torch.equal(values(3, 4), values(3, 4))
    assert torch.equal(Values("a test")(3, 4), Values("a test")(3, 4))
    ordinary = values(1000, lowest=-2, binades=2).abs()
    assert float(ordinary.min()) >= 0.25
    assert float(ordinary.max()) < 1.0
    assert bool(values.positive(1000).gt(0).all())
    strewn = values.strewn(1000)
    assert bool(strewn.isnan().any() and strewn.isinf().any() and (strewn == 0).any())
    assert int(values.integers(5, 1000).max()) == 4


def test_a_case_tells_gradients_and_their_chains() -> None:
    values = Values("another test")
    x, w = values(3, 5), values(4, 5)
    out, *gradients = both(values, samebits.linear, x, w, chained=True)
    assert [tuple(gradient.shape) for gradient in gradients] == [(3, 5), (4, 5), (3, 5), (4, 5)]
    assert tuple(out.shape) == (3, 4)
    assert not torch.equal(gradients[1], gradients[3])


def run_program(sources: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samebits.selftest", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(sources)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_program_prints_one_json_line(threads: str) -> None:
    done = run_program(PACKAGE.parent, "--json", "--threads", threads)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["profile"] == samebits.PROFILE
    assert told["digest"] == selftest.golden().digest
    assert told["operators"] == selftest.golden().operators


def edited(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))


@pytest.mark.timeout(300)
def test_a_changed_operator_is_named(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "samebits", ignore=shutil.ignore_patterns("__pycache__"))
    edited(tmp_path / "samebits" / "selftest" / "golden.json", lambda text: text.replace('"relu": "', '"relu": "0'))
    done = run_program(tmp_path, "--json")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "samebits.selftest: relu does not give the golden digest"
    assert json.loads(done.stdout)["digest"] == selftest.golden().digest

"""What a stage refuses, and what it is after a failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vnode_models import classifier, spec
from vnode_training import ROWS, classifier_stage, middle_rows, middle_stage, rows_of, train_step

from pnode.errors import BadRequest, ConfigError, SpecError, WorkerLost
from pnode.vnode.stage import Applied, Stage

X = torch.zeros(ROWS, 3, 4)
LABEL = torch.zeros(ROWS, dtype=torch.int64)


@pytest.fixture(params=["samebits-1", "torch"], autouse=True)
def profile(request: pytest.FixtureRequest) -> Any:
    """Every test here holds in both profiles."""
    torch.set_num_threads(1)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("label", "why"), [(LABEL + 5, r"class 5 of row 0 is outside 0 \.\. 4"), (LABEL - 1, "class -1")]
)
def test_bad_classes_are_refused_and_nothing_is_lost(profile: str, label: Tensor, why: str) -> None:
    stage = classifier_stage(profile=profile)
    with pytest.raises(BadRequest, match=why):
        stage.begin(0, 0, ROWS, {"x0": X}, {"label": label})
    assert train_step(stage, 0) == train_step(classifier_stage(profile=profile), 0)


G = torch.ones(ROWS, 6)


def test_after_a_failed_change_only_restore_is_allowed(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = classifier_stage(profile=profile)
    initial = stage.state()
    inputs, targets = rows_of(0)
    stage.begin(0, 0, ROWS, inputs, targets)

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "backward", fail)
        with pytest.raises(MemoryError):
            stage.finish(0, 0, {}, want_input_gradients=False)
    for call in (stage.state, lambda: stage.forward(inputs), lambda: stage.apply(0, 1)):
        with pytest.raises(WorkerLost, match="needs Restore"):
            call()
    stage.restore(None)
    assert stage.state() == initial
    assert train_step(stage, 0) == train_step(classifier_stage(profile=profile), 0)


def test_a_vnode_without_parameters_takes_its_steps(profile: str) -> None:
    operators = [{"name": "join", "inputs": ["b", "b"], "output": "e", "add": {}}]
    given = [{"name": "b", "dtype": "DTYPE_F32", "shape": [6]}]
    stage = middle_stage(profile=profile, inputs=given, operators=operators, outputs=["e"])
    stage.begin(0, 0, ROWS, {"b": G}, {})
    finished = stage.finish(0, 0, {"e": G}, want_input_gradients=True)
    assert torch.equal(finished.input_gradients["b"], 2 * G)
    assert stage.apply(0, 1) == Applied(1, None)
    state = stage.state()
    stage.restore(None)
    stage.restore(state)
    assert stage.version == 1


def test_nan_leaves_in_canonical_form(profile: str) -> None:
    stage = middle_stage(profile=profile)
    inputs, _ = middle_rows()
    strange = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)
    inputs["b"] = inputs["b"].clone()
    inputs["b"][0, 0] = strange
    outputs = stage.begin(0, 0, ROWS, inputs, {})
    for name in ("b", "e"):
        assert int(outputs[name].view(torch.int32)[0, 0]) == 0x7FC00000


def test_a_bad_spec_and_a_bad_device_are_refused(profile: str) -> None:
    good = spec(classifier(profile=profile))
    with pytest.raises(ConfigError):
        Stage(good, device="mps")
    good.operators[0].linear.in_features = 5
    with pytest.raises(SpecError, match=r"^operators\[0\].linear.in_features"):
        Stage(good)

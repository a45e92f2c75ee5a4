"""A stage: forward, microbatches in order, duplicates, steps; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vnode_models import classifier, spec
from vnode_training import ROWS, classifier_stage, middle_rows, middle_stage, part, rows_of, train_step

from pnode.errors import BadRequest, StepMismatch
from pnode.vnode.stage import Applied, Stage


@pytest.fixture(params=["samebits-1", "torch"], autouse=True)
def profile(request: pytest.FixtureRequest) -> Any:
    """Every test here holds in both profiles."""
    torch.set_num_threads(1)
    yield request.param
    torch.use_deterministic_algorithms(False)


def test_training_lowers_the_loss(profile: str) -> None:
    stage = classifier_stage(
        profile=profile, optimizer={"adamw": {"lr": 0.05, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}}
    )
    inputs, targets = rows_of(0)
    losses = []
    for step in range(15):
        stage.begin(step, 0, ROWS, inputs, targets)
        stage.finish(step, 0, {}, want_input_gradients=False)
        losses.append(stage.apply(step, 1).loss or 0.0)
    assert losses[0] > 2.0 * losses[-1] > 0.0
    assert stage.version == 15


def test_forward_answers_with_the_outputs_and_changes_nothing(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    before = stage.state()
    outputs = stage.forward(rows_of(0)[0])
    assert list(outputs) == ["logits"]
    assert outputs["logits"].shape == (ROWS, 5)
    assert not outputs["logits"].requires_grad
    assert stage.state() == before
    unnamed = Stage(spec(classifier(profile=profile, outputs=[])))
    assert torch.equal(unnamed.forward(rows_of(0)[0])["logits"], outputs["logits"])


def test_the_middle_of_a_chain_hands_on_and_hands_back(profile: str) -> None:
    stage = middle_stage(profile=profile)
    inputs, gradients = middle_rows()
    outputs = stage.begin(0, 0, ROWS, inputs, {})
    assert list(outputs) == ["e", "b", "tag"]
    assert torch.equal(outputs["b"], inputs["b"])
    assert torch.equal(outputs["tag"], inputs["tag"])
    assert all(torch.equal(outputs[name], value) for name, value in stage.forward(inputs).items())
    finished = stage.finish(0, 0, gradients, want_input_gradients=True)
    assert list(finished.input_gradients) == ["a", "b"]
    # b is read by the addition and handed on: both gradients come back in one sum.
    assert torch.equal(finished.input_gradients["b"], gradients["e"] + gradients["b"])
    assert finished.loss_sum == 0.0
    assert not finished.duplicate
    assert stage.apply(0, 1) == Applied(1, None)


def test_a_gradient_is_summed_over_ascending_readers(profile: str) -> None:
    """1e8 - 1e8 + 1 is 1 in this order and 0 in the other; torch promises no order, so only samebits is asked."""
    if profile == "torch":
        return
    given: list[dict[str, Any]] = [{"name": name, "dtype": "DTYPE_F32", "shape": []} for name in ("a", "b")]
    adds = [{"name": f"add{i}", "inputs": ["a", "b"], "output": f"c{i}", "add": {}} for i in range(2)]
    stage = middle_stage(profile=profile, inputs=given, operators=adds, outputs=["c0", "c1", "a"])
    stage.begin(0, 0, 1, {"a": torch.ones(1), "b": torch.ones(1)}, {})
    gradients = {"c0": torch.tensor([1e8]), "c1": torch.tensor([-1e8]), "a": torch.tensor([1.0])}
    found = stage.finish(0, 0, gradients, want_input_gradients=True).input_gradients
    assert found["a"].item() == 1.0
    assert found["b"].item() == 0.0


def test_inputs_are_copied_at_begin(profile: str) -> None:
    """The worker's inbox is written again before the backward comes."""
    inputs, gradients = middle_rows()
    wanted = []
    for spoiled in (False, True):
        stage = middle_stage(profile=profile)
        given = {name: tensor.clone() for name, tensor in inputs.items()}
        stage.begin(0, 0, ROWS, given, {})
        if spoiled:
            given["a"].fill_(1e9)
        stage.finish(0, 0, gradients, want_input_gradients=False)
        stage.apply(0, 1)
        wanted.append(stage.state())
    assert wanted[0] == wanted[1]


def test_a_duplicate_gets_the_same_answer_and_changes_nothing(profile: str) -> None:
    stage = middle_stage(profile=profile)
    inputs, gradients = middle_rows()
    stage.begin(0, 0, ROWS, inputs, {})
    first = stage.finish(0, 0, gradients, want_input_gradients=True)
    reference = middle_stage(profile=profile)
    reference.begin(0, 0, ROWS, inputs, {})
    reference.finish(0, 0, gradients, want_input_gradients=False)
    for _ in range(2):
        stage.begin(0, 0, ROWS, inputs, {})
        again = stage.finish(0, 0, gradients, want_input_gradients=True)
        assert again.duplicate
        assert all(torch.equal(again.input_gradients[name], first.input_gradients[name]) for name in ("a", "b"))
        stage.begin(0, 0, ROWS, inputs, {})
        assert stage.finish(0, 0, gradients, want_input_gradients=False).input_gradients == {}
    assert stage.accumulated == 1
    assert stage.apply(0, 1) == reference.apply(0, 1)
    assert stage.state() == reference.state()


def test_a_duplicate_at_the_loss_gets_the_same_loss(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    inputs, targets = rows_of(0)
    finished = []
    for _ in range(2):
        assert stage.begin(0, 0, ROWS, inputs, targets) == {}
        finished.append(stage.finish(0, 0, {}, want_input_gradients=True))
    assert finished[0].loss_sum == finished[1].loss_sum > 0.0
    assert torch.equal(finished[0].input_gradients["x0"], finished[1].input_gradients["x0"])
    assert [each.duplicate for each in finished] == [False, True]
    loss = stage.apply(0, 1).loss
    assert loss == pytest.approx(finished[0].loss_sum / ROWS)


def test_begins_may_come_in_any_order_and_finishes_may_not(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    inputs, targets = rows_of(0)
    for microbatch in (2, 0, 1):
        low = 2 * microbatch
        stage.begin(0, microbatch, ROWS, part(inputs, low, low + 2), part(targets, low, low + 2))
    with pytest.raises(StepMismatch, match="turn of microbatch 0"):
        stage.finish(0, 1, {}, want_input_gradients=False)
    for microbatch in range(3):
        stage.finish(0, microbatch, {}, want_input_gradients=False)
    stage.apply(0, 3)
    reference = classifier_stage(profile=profile)
    train_step(reference, 0, (2, 4))
    assert stage.state() == reference.state()


def test_the_last_step_is_answered_again_with_its_loss(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    loss = train_step(stage, 0)
    state = stage.state()
    assert stage.apply(0, 1) == Applied(1, loss)
    inputs, targets = rows_of(1)
    stage.begin(1, 0, ROWS, inputs, targets)
    stage.finish(1, 0, {}, want_input_gradients=False)
    assert stage.apply(0, 1) == Applied(1, loss)
    assert stage.accumulated == 1
    stage.discard(0)
    assert stage.state() == state


def test_steps_of_the_past_and_the_future_are_refused(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    inputs, targets = rows_of(0)
    train_step(stage, 0)
    train_step(stage, 1)
    for step in (0, 1, 3, 2**40):
        with pytest.raises(StepMismatch):
            stage.begin(step, 0, ROWS, inputs, targets)
        with pytest.raises(StepMismatch):
            stage.finish(step, 0, {}, want_input_gradients=False)
    for step in (0, 3):
        with pytest.raises(StepMismatch):
            stage.apply(step, 1)
    assert stage.version == 2


def test_a_step_waits_for_all_microbatches_and_all_rows(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    inputs, targets = rows_of(0)
    with pytest.raises(StepMismatch, match="0 of 0"):
        stage.apply(0, 0)
    stage.begin(0, 0, ROWS, part(inputs, 0, 2), part(targets, 0, 2))
    with pytest.raises(StepMismatch, match="0 of 1"):
        stage.apply(0, 1)
    stage.finish(0, 0, {}, want_input_gradients=False)
    with pytest.raises(StepMismatch, match="1 of 3"):
        stage.apply(0, 3)
    with pytest.raises(StepMismatch, match="2 of the 6 rows"):
        stage.apply(0, 1)
    assert stage.version == 0


def test_rows_never_exceed_the_batch(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    inputs, targets = rows_of(0)
    for batch_rows in (0, -1, 2**40, ROWS - 1):
        with pytest.raises(BadRequest):
            stage.begin(0, 0, batch_rows, inputs, targets)
    stage.begin(0, 0, ROWS, part(inputs, 0, 4), part(targets, 0, 4))
    stage.begin(0, 1, ROWS, part(inputs, 0, 4), part(targets, 0, 4))
    stage.finish(0, 0, {}, want_input_gradients=False)
    with pytest.raises(BadRequest, match="4 rows come on top of 4"):
        stage.finish(0, 1, {}, want_input_gradients=False)
    with pytest.raises(BadRequest, match="expected 6 as before"):
        stage.begin(0, 1, 8, part(inputs, 4, 6), part(targets, 4, 6))


def test_graphs_are_bounded_by_the_window(profile: str) -> None:
    stage = classifier_stage(profile=profile, window=2)
    inputs, targets = rows_of(0)
    one = part(inputs, 0, 1), part(targets, 0, 1)
    for microbatch in (-1, 2, 2**31):
        with pytest.raises(StepMismatch, match="window"):
            stage.begin(0, microbatch, ROWS, *one)
    stage.begin(0, 0, ROWS, *one)
    stage.finish(0, 0, {}, want_input_gradients=False)
    stage.begin(0, 2, ROWS, *one)
    with pytest.raises(StepMismatch, match="has not begun"):
        stage.finish(0, 0, {}, want_input_gradients=False)


def test_a_discarded_microbatch_begins_anew(profile: str) -> None:
    stage = classifier_stage(profile=profile)
    inputs, targets = rows_of(0)
    stage.begin(0, 0, ROWS, inputs, targets)
    stage.discard(0)
    stage.discard(5)
    with pytest.raises(StepMismatch, match="has not begun"):
        stage.finish(0, 0, {}, want_input_gradients=False)
    assert train_step(stage, 0) == train_step(classifier_stage(profile=profile), 0)

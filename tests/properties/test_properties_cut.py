"""Nothing depends on the cut: not on VNodes, microbatches, threads, order of arrival, duplicates or restores.

A small transformer is trained for a few steps in one process, by stages alone. Every way to do it must end at the
digest of the plain one: one VNode, one microbatch, one thread.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, given, settings
from torch import Tensor

from pnode.client.cut import Plan, cut
from pnode.client.model import Model, transformer_classifier
from pnode.errors import SpecError
from pnode.v1 import spec_pb2
from pnode.vnode.stage import Stage
from pnode.vnode.state import run_digest

ROWS = 8
STEPS = 3
SGD = spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.1, momentum=0.9, weight_decay=0.01))
ADAMW = spec_pb2.Optimizer(
    adamw=spec_pb2.AdamW(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01),
    schedule=spec_pb2.Schedule(warmup_steps=2, total_steps=5),
)
OPTIMIZERS = {"sgd": SGD, "adamw": ADAMW}


class Way(NamedTuple):
    """One way to do the same work."""

    boundaries: tuple[int, ...] = ()
    edges: tuple[int, ...] = (0, ROWS)
    num_threads: int = 1


class Hashed(Model):
    """A model that can be a key of a cache: protobuf messages cannot, so it is itself only."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


_PLAIN = transformer_classifier(tokens=4, in_features=3, features=16, num_blocks=2, num_heads=2, mlp=2, classes=5)
MODEL = Hashed(_PLAIN.inputs, _PLAIN.targets, _PLAIN.operators, _PLAIN.loss)
PLACES = range(1, len(MODEL.operators))


class Outcome(NamedTuple):
    digest: str
    losses: tuple[float, ...]


def specs_for(optimizer: str, boundaries: Sequence[int], model: Model = MODEL) -> list[spec_pb2.VNodeSpec]:
    limits = spec_pb2.Limits(memory_bytes=2**26, cpu_s=10, wall_s=10, max_rows=16)
    plan = Plan(run="cuts", seed=11, optimizer=OPTIMIZERS[optimizer], limits=limits, window=8)
    return cut(model, plan, boundaries=boundaries)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 4, 3, generator=generator), torch.randint(0, 5, (ROWS,), generator=generator)


class Chain:
    """The stages of a run, driven as the fronts drive theirs."""

    def __init__(self, optimizer: str, way: Way, model: Model = MODEL) -> None:
        self.way = way
        specs = specs_for(optimizer, way.boundaries, model)
        self.stages = [Stage(spec, num_threads=way.num_threads) for spec in specs]

    @property
    def num_microbatches(self) -> int:
        return len(self.way.edges) - 1

    def begin(self, step: int, microbatch: int) -> None:
        tokens, label = batch(step)
        low, high = self.way.edges[microbatch], self.way.edges[microbatch + 1]
        given = {"tokens": tokens[low:high]}
        for stage in self.stages[:-1]:
            given = stage.begin(step, microbatch, ROWS, given, {})
        self.stages[-1].begin(step, microbatch, ROWS, given, {"label": label[low:high]})

    def finish(self, step: int, microbatch: int) -> tuple[dict[str, Tensor], float]:
        gradients: dict[str, Tensor] = {}
        losses = []
        for stage in reversed(self.stages):
            gradients, loss_sum, _ = stage.finish(step, microbatch, gradients, want_input_gradients=True)
            losses.append(loss_sum)
        return gradients, losses[0]

    def train(self, step: int) -> None:
        for microbatch in range(self.num_microbatches):
            self.begin(step, microbatch)
            self.finish(step, microbatch)

    def apply(self, step: int) -> float:
        applied = [stage.apply(step, self.num_microbatches) for stage in self.stages]
        assert {each.version for each in applied} == {step + 1}
        assert applied[-1].loss is not None
        return applied[-1].loss

    def states(self) -> list[bytes]:
        return [stage.state() for stage in self.stages]

    def restore(self, states: Sequence[bytes]) -> None:
        for stage, state in zip(self.stages, states, strict=True):
            stage.restore(state)


@functools.cache
def outcome(optimizer: str, way: Way = Way(), model: Model = MODEL) -> Outcome:  # noqa: B008 - a Way is immutable
    chain = Chain(optimizer, way, model)
    losses = []
    for step in range(STEPS):
        chain.train(step)
        losses.append(chain.apply(step))
    return Outcome(run_digest(chain.states()), tuple(losses))


def evenly(num: int) -> tuple[int, ...]:
    return tuple(range(0, ROWS + 1, ROWS // num))


# Training is slow to shrink, and its examples are small as they come.
FEW = settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate))

ways = st.builds(
    Way,
    boundaries=st.sets(st.sampled_from(PLACES), max_size=4).map(lambda places: tuple(sorted(places))),
    edges=st.sets(st.integers(1, ROWS - 1), max_size=5).map(lambda inner: (0, *sorted(inner), ROWS)),
    num_threads=st.sampled_from([1, 2]),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_microbatches", [1, 2, 4])
@pytest.mark.parametrize("boundaries", [(), (9,), (6, 13)])
def test_the_promised_ways_end_at_one_digest(
    optimizer: str, boundaries: tuple[int, ...], num_microbatches: int, num_threads: int
) -> None:
    assert outcome(optimizer, Way(boundaries, evenly(num_microbatches), num_threads)) == outcome(optimizer)


@pytest.mark.parametrize("place", PLACES)
def test_one_cut_at_every_place(place: int) -> None:
    assert outcome("adamw", Way((place,), evenly(2))) == outcome("adamw")


def test_a_vnode_for_every_operator() -> None:
    assert outcome("adamw", Way(tuple(PLACES), evenly(4))) == outcome("adamw")


@FEW
@given(way=ways, optimizer=st.sampled_from(sorted(OPTIMIZERS)))
def test_any_way_ends_at_the_same_digest_and_losses(way: Way, optimizer: str) -> None:
    assert outcome(optimizer, way) == outcome(optimizer)


@FEW
@given(way=ways, story=st.data())
def test_duplicates_disorder_and_restores_change_nothing(way: Way, story: st.DataObject) -> None:
    """Begins in any order, microbatches answered again, whole steps thrown away and replayed from their state."""
    chain = Chain("adamw", way)
    states = chain.states()
    for step in range(STEPS):
        if story.draw(st.booleans(), label="throw a half-done step away"):
            for microbatch in range(story.draw(st.integers(0, chain.num_microbatches), label="microbatches lost")):
                chain.begin(step, microbatch)
                chain.finish(step, microbatch)
            chain.restore(states)
        answers = []
        for microbatch in story.draw(st.permutations(range(chain.num_microbatches)), label="begins"):
            chain.begin(step, microbatch)
        for microbatch in range(chain.num_microbatches):
            answers.append(chain.finish(step, microbatch))
            for again in story.draw(st.lists(st.integers(0, microbatch), max_size=2), label="again"):
                chain.begin(step, again)
                gradients, loss_sum = chain.finish(step, again)
                assert loss_sum == answers[again][1]
                assert torch.equal(gradients["tokens"], answers[again][0]["tokens"])
        loss = chain.apply(step)
        assert chain.apply(step) == loss == outcome("adamw").losses[step]
        states = chain.states()
    assert run_digest(states) == outcome("adamw").digest


def test_input_gradients_do_not_depend_on_the_cut() -> None:
    found = []
    for boundaries in ((), (4,), (5, 6, 12)):
        chain = Chain("sgd", Way(boundaries))
        chain.begin(0, 0)
        found.append(chain.finish(0, 0)[0]["tokens"])
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_the_seed_and_the_data_matter() -> None:
    """The digest is not blind: another optimizer, another order of rows, another place for an operator's name."""
    digests = {outcome("adamw").digest, outcome("sgd").digest}
    chain = Chain("adamw", Way())
    for stage in chain.stages:
        stage.restore(None)
    for step in reversed(range(STEPS)):
        tokens, label = batch(step)
        now = STEPS - 1 - step
        chain.stages[0].begin(now, 0, ROWS, {"tokens": tokens}, {"label": label})
        chain.finish(now, 0)
        chain.apply(now)
    digests.add(run_digest(chain.states()))
    assert len(digests) == 3


def test_a_cut_that_would_change_a_sum_is_refused() -> None:
    """A value read three times: the cut with one reader above and two below is refused, all others are exact."""
    operators = list(MODEL.operators)
    more = [
        spec_pb2.Operator(name="more1", inputs=["embed", "position"], output="more1", add=spec_pb2.Add()),
        spec_pb2.Operator(name="more2", inputs=["embed", "more1"], output="more2", add=spec_pb2.Add()),
    ]
    renamed = [spec_pb2.Operator.FromString(op.SerializeToString()) for op in operators[2:]]
    for op in renamed:
        op.inputs[:] = ["more2" if name == "position" else name for name in op.inputs]
    model = Hashed(MODEL.inputs, MODEL.targets, (*operators[:2], *more, *renamed), MODEL.loss)
    refused = []
    for place in range(1, len(model.operators)):
        try:
            got = outcome("sgd", Way((place,), evenly(2)), model)
        except SpecError:
            refused.append(place)
            continue
        assert got == outcome("sgd", Way(), model)
    assert refused == [2]

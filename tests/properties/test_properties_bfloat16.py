"""bfloat16 across the cuts: in activations, at boundaries and in gradients nothing depends on the cut either.

The model of test_properties_cut.py with bf16 inputs, f32 in its middle and bf16 again up to the loss, so that a cut may
be in either dtype and at the casts themselves. Parameters and states are f32 as ever.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
import samebits
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_properties_cut import ADAMW, MODEL, ROWS, Hashed
from torch import Tensor

from pnode.client.cut import Plan, cut
from pnode.errors import SpecError
from pnode.v1 import spec_pb2, tensor_pb2
from pnode.vnode.chain import validate_chain
from pnode.vnode.stage import Stage
from pnode.vnode.state import run_digest

STEPS = 2
LIMITS = spec_pb2.Limits(memory_bytes=2**26, cpu_s=10, wall_s=10, max_rows=16)


def narrowed() -> Hashed:
    """bf16 -> embed, positions -> f32 -> the first block -> bf16 -> the second block, the head."""
    casts = {
        "position": spec_pb2.Operator(name="wide", output="wide", to_float32=spec_pb2.ToFloat32()),
        "block0.add2": spec_pb2.Operator(name="narrow", output="narrow", to_bfloat16=spec_pb2.ToBfloat16()),
    }
    operators: list[spec_pb2.Operator] = []
    renamed: dict[str, str] = {}
    for op in MODEL.operators:
        here = spec_pb2.Operator.FromString(op.SerializeToString())
        here.inputs[:] = [renamed.get(name, name) for name in op.inputs]
        operators.append(here)
        if op.output in casts:
            cast = casts[op.output]
            cast.inputs.append(op.output)
            operators.append(cast)
            renamed[op.output] = cast.output
    tokens = tensor_pb2.TensorSpec(name="tokens", dtype=tensor_pb2.DTYPE_BF16, shape=MODEL.inputs[0].shape)
    return Hashed((tokens,), MODEL.targets, tuple(operators), MODEL.loss)


NARROW = narrowed()
PLACES = range(1, len(NARROW.operators))


def stages(places: Sequence[int], num_threads: int) -> list[Stage]:
    plan = Plan(run="cuts", seed=11, optimizer=ADAMW, limits=LIMITS, window=8)
    return [Stage(spec, num_threads=num_threads) for spec in cut(NARROW, plan, boundaries=places)]


def rows(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = samebits.to_bfloat16(torch.randn(ROWS, 4, 3, generator=generator))
    return tokens, torch.randint(0, 5, (ROWS,), generator=generator)


def train(chain: Sequence[Stage], step: int, edges: Sequence[int]) -> list[Tensor]:
    """One step as fronts take it. Returns the gradients of the inputs."""
    tokens, label = rows(step)
    found = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        given = {"tokens": tokens[low:high]}
        for stage in chain:
            targets = {"label": label[low:high]} if stage is chain[-1] else {}
            given = stage.begin(step, index, ROWS, given, targets)
        gradients: dict[str, Tensor] = {}
        for stage in reversed(chain):
            gradients = stage.finish(step, index, gradients, want_input_gradients=True).input_gradients
        found.append(gradients["tokens"])
    for stage in chain:
        stage.apply(step, len(edges) - 1)
    return found


Outcome = tuple[str, bytes, bytes]


@functools.cache
def outcome(places: tuple[int, ...] = (), edges: tuple[int, ...] = (0, ROWS), num_threads: int = 1) -> Outcome:
    """The run's digest; the bytes of the first step's input gradients; the logits after the last step."""
    chain = stages(places, num_threads)
    found = [train(chain, step, edges) for step in range(STEPS)]
    gradients = torch.cat(found[0])
    assert gradients.dtype is torch.bfloat16
    values = {"tokens": rows(9)[0]}
    for stage in chain:
        values = stage.forward(values)
    (logits,) = values.values()
    assert logits.dtype is torch.bfloat16
    gradients_bytes, logits_bytes = (each.view(torch.int16).numpy().tobytes() for each in (gradients, logits))
    return run_digest([stage.state() for stage in chain]), gradients_bytes, logits_bytes


@pytest.mark.parametrize("place", PLACES)
def test_one_cut_at_every_place(place: int) -> None:
    """Also before, between and after the casts."""
    assert outcome((place,), (0, 4, 8)) == outcome()


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    places=st.sets(st.sampled_from(PLACES), max_size=4),
    edges=st.sets(st.integers(1, ROWS - 1), max_size=5),
    num_threads=st.sampled_from([1, 2]),
)
def test_any_cut_microbatches_and_threads(places: set[int], edges: set[int], num_threads: int) -> None:
    assert outcome(tuple(sorted(places)), (0, *sorted(edges), ROWS), num_threads) == outcome()


def test_bfloat16_is_not_float32() -> None:
    """The digest sees the roundings: without the casts, and with f32 inputs, it is another."""
    digests = {outcome()[0]}
    plan = Plan(run="cuts", seed=11, optimizer=ADAMW, limits=LIMITS, window=8)
    (spec,) = cut(MODEL, plan)
    stage = Stage(spec)
    for step in range(STEPS):
        tokens, label = rows(step)
        stage.begin(step, 0, ROWS, {"tokens": tokens.float()}, {"label": label})
        stage.finish(step, 0, {}, want_input_gradients=False)
        stage.apply(step, 1)
    digests.add(run_digest([stage.state()]))
    assert len(digests) == 2


def test_a_state_moves_between_bf16_vnodes() -> None:
    """Checkpoints hold f32 parameters: what is restored elsewhere goes on to the same bits."""
    first, second = stages((3, 12), 1), stages((3, 12), 2)
    train(first, 0, (0, 4, 8))
    for stage, other in zip(first, second, strict=True):
        other.restore(stage.state())
    for chain in (first, second):
        train(chain, 1, (0, 3, 8))
    assert [stage.state() for stage in first] == [stage.state() for stage in second]
    assert run_digest([stage.state() for stage in second]) == outcome()[0]


def test_a_boundary_in_two_dtypes_is_no_chain() -> None:
    plan = Plan(run="cuts", seed=11, optimizer=ADAMW, limits=LIMITS)
    specs = cut(NARROW, plan, boundaries=[2])
    specs[1].inputs[0].dtype = tensor_pb2.DTYPE_F32
    with pytest.raises(SpecError, match=r"vnodes\[1\].inputs\[0\].dtype: expected DTYPE_BF16, got DTYPE_F32"):
        validate_chain(specs)

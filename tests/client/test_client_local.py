"""One digest, however the model is cut, the batch is split and the work is shared among threads."""

from __future__ import annotations

import itertools

import pytest
from client_rows import make_batch

from pnode.client.batch import to_array
from pnode.client.cut import Plan, cut
from pnode.client.local import LocalRun
from pnode.client.model import Model
from pnode.config import load
from pnode.errors import SpecError
from pnode.jobs.catalog import make_job
from pnode.jobs.job import Job

STEPS = 3


@pytest.fixture(scope="module")
def job() -> Job:
    """The main job, for a few steps."""
    return make_job(load([f"job.steps={STEPS}", "job.warmup=1"]).job)


def trained(job: Job, stages: int, num_microbatches: int, num_threads: int) -> tuple[str, list[float]]:
    run = LocalRun(job.cut("run", stages=stages), num_threads=num_threads)
    losses = [run.step(step, job.batch(step), num_microbatches) for step in range(STEPS)]
    return run.digest(), losses


@pytest.fixture(scope="module")
def whole(job: Job) -> tuple[str, list[float]]:
    """Uncut, a batch at a time, one thread."""
    return trained(job, 1, 1, 1)


@pytest.mark.parametrize(
    ("stages", "num_microbatches", "num_threads"),
    [(1, 1, 2), (1, 4, 1), (2, 1, 1), (2, 2, 2), (3, 1, 2), (3, 2, 1), (3, 4, 1), (3, 4, 2)],
)
def test_the_main_job_ends_at_one_digest(
    job: Job, whole: tuple[str, list[float]], stages: int, num_microbatches: int, num_threads: int
) -> None:
    assert trained(job, stages, num_microbatches, num_threads) == whole


@pytest.mark.parametrize("num_microbatches", [1, 3, 8])
def test_every_cut_of_a_small_model_ends_at_one_digest(model: Model, plan: Plan, num_microbatches: int) -> None:
    """Also where a residual passes through a VNode that does not read it, and with microbatches of unequal sizes."""
    num = len(model.operators)
    cuts = [[place] for place in range(1, num)] + [
        [a, b] for a, b in itertools.combinations(range(1, num), 2) if b - a < 3
    ]
    expected = small(model, plan, [], 1)
    for boundaries in cuts[:: num_microbatches + 1]:
        assert small(model, plan, boundaries, num_microbatches) == expected, boundaries


def small(model: Model, plan: Plan, boundaries: list[int], num_microbatches: int) -> tuple[str, bytes]:
    run = LocalRun(cut(model, plan, boundaries=boundaries))
    for step in range(2):
        run.step(step, make_batch(step), num_microbatches)
    return run.digest(), to_array(run.forward(make_batch(9))[0]).tobytes()


def test_what_is_no_chain_is_refused(model: Model, plan: Plan) -> None:
    with pytest.raises(SpecError):
        LocalRun(cut(model, plan, stages=3)[::-1])

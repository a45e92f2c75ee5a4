"""What all tests share: a Hypothesis profile, a guard against leftovers, and a real S3 server when one is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.leftovers import guarded
from tests.seaweed import S3Endpoint, seaweed

# A busy machine is no fault of a test, so there is no deadline for one example; the test as a whole has its limit.
settings.register_profile("local", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=True)
def nothing_left() -> Iterator[None]:
    """Fails the run if processes, threads or shared memory outlive its tests. In each worker of xdist for itself."""
    yield from guarded()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[S3Endpoint]:
    """A SeaweedFS of this test process, started when first asked for."""
    with seaweed() as endpoint:
        yield endpoint

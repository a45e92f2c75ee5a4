"""The jobs by name."""

from __future__ import annotations

from collections.abc import Callable

from pnode.config.schema import JobSection
from pnode.jobs import digits
from pnode.jobs.job import Job

JOBS: dict[str, Callable[[JobSection], Job]] = {"digits": digits.make}


def make_job(settings: JobSection) -> Job:
    """The configured job."""
    return JOBS[settings.name](settings)

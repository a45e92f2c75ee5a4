"""Memory that a message had is there for the next one, without the system."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from pnode.transport import arenas
arenas.keep()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    message = bytearray(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_a_message_as_large_as_the_last_one_touches_no_new_page() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    pages = (16 << 20) // resource.getpagesize()
    assert int(done.stdout) < pages / 100

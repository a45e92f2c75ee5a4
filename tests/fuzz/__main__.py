"""Coverage-guided fuzzing by atheris: `make fuzz`, or `python -m tests.fuzz [TARGET ...] [--seconds N] [--corpus DIR]`.

Each target runs in a process of its own, for hangs and for memory without end are findings, too. What was found
interesting is kept in the corpus, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

TARGETS = ("frames", "specs", "specs-json", "states", "calls")

# One input may take so long and so much; all that we read is bounded by a few megabytes.
_INPUT_S = 10
_MEMORY_MIB = 2048
_INPUT_BYTES = 4096


def main() -> int:
    """Fuzz the targets one after the other; 1 where one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="all of them where none is named")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="where inputs are kept")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.inside:
        return _fuzz(given.targets[0], rest)
    failed = [name for name in given.targets or TARGETS if not _ran_well(name, given.seconds, given.corpus)]
    sys.stdout.write(f"found something in: {', '.join(failed)}\n" if failed else "found nothing\n")
    return 1 if failed else 0


def _ran_well(name: str, seconds: int, corpus: Path) -> bool:
    from tests.fuzz import targets

    target = targets.TARGETS[name]
    folder, findings = corpus / name, corpus / "findings"
    for each in (folder, findings):
        each.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(target.seeds):
        (folder / f"seed-{index}").write_bytes(seed)
    dictionary = corpus / f"{name}.dict"
    # libFuzzer takes an empty one for a mistake.
    dictionary.write_text("".join(f'"{word}"\n' for word in target.words or ("run",)), encoding="ascii")
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_INPUT_BYTES}",
        f"-timeout={_INPUT_S}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-artifact_prefix={findings}/{name}-",
        f"-dict={dictionary}",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    sys.stdout.write(f"{name}: {seconds} s; findings go to {findings}\n")
    sys.stdout.flush()
    inside = [sys.executable, "-m", "tests.fuzz", name, "--inside", *options, str(folder)]
    return subprocess.run(inside, check=False).returncode == 0


def _fuzz(name: str, options: list[str]) -> int:
    """Never returns: libFuzzer ends the process."""
    import atheris

    # Whatever is imported here tells the fuzzer which branches an input took.
    with atheris.instrument_imports(include=["pnode"]):
        from tests.fuzz import targets

    atheris.Setup([sys.argv[0], *options], targets.TARGETS[name].check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())

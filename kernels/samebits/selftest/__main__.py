"""`python -m samebits.selftest`: exit 0 where every operator gives the golden digest, 1 where one does not."""

from __future__ import annotations

import argparse
import json
import sys

from samebits import PROFILE, selftest, set_num_threads


def main(argv: list[str] | None = None) -> int:
    """Run the self-test as the arguments ask, and print what it found."""
    arguments = _parser().parse_args(argv)
    set_num_threads(arguments.threads)
    if arguments.write:
        return _write(selftest.run())
    expected = selftest.golden()  # now: the file may be another one when a slow machine is done
    report = selftest.run()
    differing = report.differing(expected.operators)
    sys.stdout.write(report.as_json() + "\n" if arguments.json else _summary(report, differing))
    for name in differing:
        sys.stderr.write(f"samebits.selftest: {name} does not give the golden digest\n")
    return 1 if differing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m samebits.selftest", description=selftest.__doc__)
    parser.add_argument("--json", action="store_true", help="print profile, digest and operators as one JSON line")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of an operator (default: 1)")
    parser.add_argument(
        "--write", action="store_true", help="make today's digests the golden ones: for a new operator or case only, "
        "or where the contract itself has changed"
    )  # fmt: skip
    return parser


def _summary(report: selftest.Report, differing: list[str]) -> str:
    verdict = f"{len(differing)} differ from the golden digests" if differing else "all give the golden digests"
    return f"{PROFILE} {report.digest}: {len(report.operators)} operators, {verdict}\n"


def _write(report: selftest.Report) -> int:
    old = selftest.golden().operators if selftest.GOLDEN.exists() else {}
    for name in report.differing(old):
        change = "new" if name not in old else "gone" if name not in report.operators else "CHANGED"
        sys.stdout.write(f"{change} {name}\n")
    text = json.dumps(dict(sorted(report.operators.items())), indent=0)
    selftest.GOLDEN.write_text(text + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks COMMAND``: this project against the official PyTorch code, in one run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys

import core.packages  # noqa: F401  (first: it ends where packages are missing)
from benchmarks import cases, compare, machine, report
from core.errors import UserError, main_guard
from core.log import info, warn

# Command -> module with its cases (see benchmarks.cases.Suite).
SUITES = {
    "sam": "benchmarks.sam_cases",
    "evaluate": "benchmarks.evaluator_cases",
    "pass": "benchmarks.pass_cases",
}


@main_guard
def main(arguments: list[str]) -> int:
    """Measure; returns 1 where the two sides did not come to the same result."""
    options = _parser().parse_args(arguments)
    suite = cases.load_suite(SUITES[options.suite])
    missing = [name for name in suite.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the official code to compare with is not installed ({', '.join(missing)} missing): "
            "run make judge"
        )
    unknown = sorted(set(options.only) - set(suite.cases))
    if unknown:
        raise UserError(f"unknown case {unknown[0]!r}; the cases are {', '.join(suite.cases)}")
    names = [name for name in suite.cases if not options.only or name in options.only]
    found = machine.describe()
    info(cases.STAGE, machine.in_words(found))
    outcomes = compare.measure(suite, names, options.runs)
    if found["busy"]:
        warn(cases.STAGE, machine.busy_warning(found))
    if options.json:
        print(json.dumps([outcome.as_json(found) for outcome in outcomes], indent=1))
    else:
        print(report.markdown(outcomes, found))
    return 0 if all(outcome.same_result for outcome in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument(
        "--json",
        action="store_true",
        help="a list of objects instead of Markdown",
    )
    parser.add_argument("--runs", type=_at_least_one, default=5, help="timed runs of each side (5)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these cases only")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one run is needed")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m wsss COMMAND``: every stage and tool of the pipeline, one by one."""

from __future__ import annotations

import sys

import core.packages  # noqa: F401  (first: it ends where packages are missing)
from core.errors import main_guard
from tools import command_line
from wsss.pipeline import PIPELINE


@main_guard
def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    return command_line.main(arguments, PIPELINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

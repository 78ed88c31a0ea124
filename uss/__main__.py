"""``python -m uss COMMAND``: every stage and tool of the pipeline, one by one."""

from __future__ import annotations

import sys

import core.packages  # noqa: F401  (first: it ends where packages are missing)
from tools.command_line import command_of
from uss.pipeline import PIPELINE

main = command_of(PIPELINE)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

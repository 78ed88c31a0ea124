"""``python -m uss demo-data``: the generated data set that ``make demo`` runs on."""

from __future__ import annotations

import argparse
from pathlib import Path

from core import log
from core.data import synthetic


def main(arguments: list[str]) -> int:
    """Make the data set in ``--data`` unless it is there already; the same seed gives the same
    bytes.
    """
    parser = argparse.ArgumentParser(prog="python -m uss demo-data", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    root = synthetic.make_dataset(options.data, seed=options.seed, train=10)
    log.info("demo-data", f"data set at {root}")
    return 0

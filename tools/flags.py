"""How the flags that several commands take are spelt: the one home of each spelling.

The preferred spelling comes first; the others are those of the reference and of earlier versions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.work.claims import IMAGE_TIMEOUT_S

DATA = ("--data", "--data_path")
SPLIT = ("--split", "--mode")
RUN = ("--run",)
RESULT = ("--result", "--dump_path")
MATCH_FILE = ("--match-file", "--match_file")
NUM_CLASSES = ("--num-classes", "-c")
IMAGE_TIMEOUT = ("--image-timeout",)
VERIFY = ("--verify",)
SET = "STAGE.FIELD=VALUE"

IMAGE_TIMEOUT_HELP = f"seconds after which an image counts as hung ({IMAGE_TIMEOUT_S:g})"
VERIFY_HELP = "read the results of earlier runs, instead of trusting their sizes and times"
_LONGEST_S = 1e6  # what waits for an answer of a process takes no more than some weeks

_DEST = {DATA: "data", SPLIT: "split", RUN: "run", RESULT: "result", MATCH_FILE: "match_file"}


def seconds(text: str) -> float:
    """A time of the command line; argparse names this function where it is no number."""
    value = float(text)
    if not 0 < value <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most {_LONGEST_S:g}")
    return value


#: Further arguments of ``add_argument`` for :data:`IMAGE_TIMEOUT`.
IMAGE_TIMEOUT_OPTIONS = {"type": seconds, "default": IMAGE_TIMEOUT_S, "metavar": "SECONDS"}


def add_place(parser: Any, spellings: tuple[str, ...], help: str, **options: Any) -> None:
    """Add one of the flags above, which names a file, a folder or (:data:`SPLIT`) a split."""
    kind = {} if spellings is SPLIT else {"type": Path}
    parser.add_argument(*spellings, dest=_DEST[spellings], help=help, **kind, **options)


def add_num_classes(parser: Any, help: str, **options: Any) -> None:
    """Add the flag that states the number of classes or clusters."""
    parser.add_argument(*NUM_CLASSES, dest="num_classes", type=int, help=help, **options)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, which overrides settings of the configuration."""
    text = "override one setting; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar=SET, help=text)

"""How the flags that several commands take are spelt: the one home of each spelling.

The preferred spelling comes first; the others are those of the reference and of earlier versions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DATA = ("--data", "--data_path")
SPLIT = ("--split", "--mode")
RUN = ("--run",)
RESULT = ("--result", "--dump_path")
MATCH_FILE = ("--match-file", "--match_file")
NUM_CLASSES = ("--num-classes", "-c")
SET = "STAGE.FIELD=VALUE"

_DEST = {DATA: "data", SPLIT: "split", RUN: "run", RESULT: "result", MATCH_FILE: "match_file"}


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

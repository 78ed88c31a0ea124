"""How the flags that several commands take are spelt: the one home of each spelling.

The preferred spelling comes first; the others are those of the reference and of earlier versions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from core.config import Rule, between, number, seconds
from core.data.label_maps import IGNORE
from core.data.workers import MOST_WORKERS
from core.errors import UserError
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

_MOST_SEED = 2**32 - 1  # what numpy's generators take
IMAGE_TIMEOUT_HELP = f"seconds after which an image counts as hung ({IMAGE_TIMEOUT_S:g})"
VERIFY_HELP = "read the results of earlier runs, instead of trusting their sizes and times"
_LONGEST_S = 1e6  # what waits for an answer of a process takes no more than some weeks

_DEST = {DATA: "data", SPLIT: "split", RUN: "run", RESULT: "result", MATCH_FILE: "match_file"}


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, as every other error of a command."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError: "--port must be 0 to 65535, is -1; see python -m uss watch --help"."""
        text = message.removeprefix("argument ").replace(": must be ", " must be ", 1)
        raise UserError(f"{text}; see {self.prog} --help")


#: Further arguments of ``add_argument`` for :data:`IMAGE_TIMEOUT`.
IMAGE_TIMEOUT_OPTIONS = {
    "type": number(float, seconds(_LONGEST_S)),
    "default": IMAGE_TIMEOUT_S,
    "metavar": "SECONDS",
}


def add_place(parser: Any, spellings: tuple[str, ...], help: str, **options: Any) -> None:
    """Add one of the flags above, which names a file, a folder or (:data:`SPLIT`) a split."""
    kind = {} if spellings is SPLIT else {"type": Path}
    parser.add_argument(*spellings, dest=_DEST[spellings], help=help, **kind, **options)


def add_num_classes(parser: Any, help: str, **options: Any) -> None:
    """Add the flag that states the number of classes or clusters."""
    kind = number(int, between(1, IGNORE - 1))
    parser.add_argument(*NUM_CLASSES, dest="num_classes", type=kind, help=help, **options)


def add_workers(parser: Any, help: str, least: int = 1) -> None:
    """Add the flag that states a number of processes."""
    parser.add_argument(
        "--workers", type=number(int, between(least, MOST_WORKERS)), help=help, metavar="N"
    )


def add_seed(parser: Any, help: str) -> None:
    """Add the flag that states the seed of what is drawn."""
    kind = number(int, between(0, _MOST_SEED))
    parser.add_argument("--seed", type=kind, default=0, help=help, metavar="N")


def add_count(parser: Any, name: str, least: int, help: str, **options: Any) -> None:
    """Add a flag that states a number of things."""
    rule = Rule(f"{least} or more", lambda value: value >= least)
    parser.add_argument(name, type=number(int, rule), metavar="N", help=help, **options)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, which overrides settings of the configuration."""
    text = "override one setting; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar=SET, help=text)

"""``python -m uss weights``: fetch the small SAM or an official one, and list which weights are at
hand.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from core.log import warn
from core.pipeline.folders import WEIGHTS
from core.pipeline.stage import Pipeline
from sam.published import fetch_published, published
from sam.weights import STAGE, cache_folder, fetch_sam, fetched_path, find_sam, manifest
from tools import flags


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """``python -m NAME weights``: fetch the small SAM, or the official one that is named, then
    print what is there and what may be added by hand.
    """
    parser = flags.Parser(prog=f"python -m {pipeline.name} weights", description=main.__doc__)
    parser.add_argument(
        "name",
        nargs="?",
        choices=list(published(manifest())),
        help="an official SAM: fetched from its authors; goes on where it was cut",
    )
    parser.add_argument("--weights-dir", type=Path, default=WEIGHTS, help="default: %(default)s")
    asked = parser.parse_args(arguments)
    folder = asked.weights_dir
    if asked.name is not None:
        fetch_published(asked.name, folder, manifest())
        print(_table(folder))
        return 0
    problem: UserError | None = None
    try:
        fetch_sam()
    except UserError as error:
        problem = error
    print(_table(folder))
    if problem is not None:
        # Not being able to fetch matters only where nothing else is there.
        try:
            find_sam(folder)
        except UserError:
            raise problem from None
        warn(STAGE, str(problem))
        return 0
    find_sam(folder)
    return 0


def _table(folder: Path) -> str:
    listed = manifest()
    entries = [(folder / entry["file"], entry) for entry in listed["by_hand"]]
    entries.append((fetched_path(), {"used_by": "train_3.sh, test.py", **listed["fetched"]}))
    rows = [("file", "used by", "found", "what it is")]
    for path, entry in entries:
        size = f"{path.stat().st_size / 1e6:.0f} MB" if path.is_file() else "-"
        rows.append((entry["file"], entry["used_by"], size, entry["what"]))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[3]]) for row in rows]
    return "\n".join([*lines, f"by hand: {folder}", f"fetched: {cache_folder()}"])

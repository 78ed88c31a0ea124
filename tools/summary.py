"""``python -m NAME summary``: what a finished run reached, what it took, and how it looks."""

from __future__ import annotations

from pathlib import Path

from core import pictures
from core.data.images import load_rgb
from core.data.label_maps import load_label
from core.data.layout import open_layout
from core.pipeline.folders import VALIDATION, ResultFolder, RunFolder
from core.pipeline.stage import Pipeline
from core.pipeline.times import stage_seconds
from core.scoring.matching import apply_match, read_match
from tools import flags
from tools.evaluate.table import AFTER, BEFORE
from tools.submission.results import MATCH, baseline_lines, read_evaluation

_ROWS = 6
_SHEET = "sheet.png"


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Print scores and times of ``--run`` and ``--result``, and write the picture sheet."""
    parser = flags.Parser(prog=f"python -m {pipeline.name} summary", description=__doc__)
    flags.add_place(parser, flags.DATA, "data set folder", required=True)
    flags.add_place(parser, flags.RUN, "run folder", required=True)
    flags.add_place(parser, flags.RESULT, "where test.py wrote", required=True)
    options = parser.parse_args(arguments)
    seconds = stage_seconds(RunFolder(options.run).times)
    print("\nstage                       seconds")
    for stage, value in seconds.items():
        print(f"{stage:26}{value:9.1f}")
    print(f"{'all stages':26}{sum(seconds.values()):9.1f}\n")
    scores = read_evaluation(options.result, VALIDATION, BEFORE, AFTER)
    for name in (BEFORE, AFTER):
        print(f"validation mIoU {name.replace('_', ' ')}: {100 * scores[name]['miou']:.2f} %")
    for line in baseline_lines(scores):
        print(line)
    sheet = write_sheet(options.data, options.result, len(scores[AFTER]["iou"]) - 1)
    print(f"pictures: {sheet}\narchive:  {ResultFolder(options.result).archive}")
    return 0


def write_sheet(data: Path, result: Path, num_classes: int) -> Path:
    """Picture sheet of validation images spread over the classes: image, labels, truth."""
    layout = open_layout(data)
    items = layout.images(VALIDATION)
    chosen = items[:: max(1, len(items) // _ROWS)][:_ROWS]
    match, folders = read_match(result / MATCH, num_classes), ResultFolder(result)
    rows = []
    for item in chosen:
        labels = [
            apply_match(load_label(folder / f"{item.key}.png"), match)
            for folder in (folders.unrefined(VALIDATION), folders.labels(VALIDATION))
        ]
        truth = layout.truth(VALIDATION, item.key)
        rows.append(pictures.SheetRow(item.key, [load_rgb(item.path), *labels, truth]))
    sheet = result / _SHEET
    pictures.picture_sheet(rows, sheet)
    return sheet

"""``python -m NAME report RUN``: one page about a run, ``report.html``, to be opened anywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from core import log
from core.errors import UserError
from core.files import atomic_write
from core.pipeline.stage import Pipeline
from tools import flags
from tools.report.run_files import STAGE, Request

_IMAGES = 200
_PAGE = "report.html"


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Write the page; returns the exit code."""
    # Their libraries take a second to load, which --help does not need.
    from tools.report.collect import collect
    from tools.report.page import render

    options = _parser(pipeline).parse_args(arguments)
    request = Request(options.run, options.data, options.result, options.split, options.num_classes)
    content = collect(request, pipeline, options.images, options.maps, options.workers)
    path = options.output or options.run / _PAGE
    page = render(content)
    try:
        with atomic_write(path, "w") as file:
            file.write(page)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; name another place with --output"
        ) from error
    shown = f"{len(content.gallery)} of {content.images} images"
    log.info(STAGE, f"{path}: {shown}, {len(page) / 1e6:.1f} MB")
    return 0


def _parser(pipeline: Pipeline) -> argparse.ArgumentParser:
    parser = flags.Parser(prog=f"python -m {pipeline.name} report", description=__doc__)
    add = parser.add_argument
    add("run", type=Path, help="run folder of train_1..4.sh and test.py")
    data = f"data set folder (what the run notes, or {pipeline.default_data})"
    flags.add_place(parser, flags.DATA, data)
    result = "where test.py wrote (RUN/result or ./result, where it is of this run)"
    flags.add_place(parser, flags.RESULT, result)
    split = "split whose label maps are shown (validation where there is one)"
    flags.add_place(parser, flags.SPLIT, split)
    flags.add_count(parser, "--images", 0, f"of the gallery ({_IMAGES})", default=_IMAGES)
    for name in pipeline.maps:
        maps = f"also draw {name} maps (needs their network)"
        add(f"--{name}", dest="maps", action="store_const", const=name, help=maps)
    parser.set_defaults(maps=None)
    flags.add_num_classes(parser, "classes (default: those of the match)")
    add("--output", type=Path, metavar="FILE", help=f"the page (RUN/{_PAGE})")
    flags.add_workers(parser, "processes that read label maps (default: what pays)")
    return parser

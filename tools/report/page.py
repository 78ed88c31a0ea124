"""The page itself: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.io
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from core.scoring.metrics import SIZE_BIN_ENDS, SIZE_BINS
from tools.report import figures
from tools.report.collect import PageData

_FOLDER = Path(__file__).parent / "templates"
_CONFUSIONS = 12
# Name of a picture -> (caption, whether it is a layer over the photograph).
PICTURES = {
    "image": ("image", False),
    "truth": ("truth", True),
    "before": ("before refinement", True),
    "after": ("after refinement", True),
    "masks": ("masks", True),
    "attention": ("attention", False),
}


@dataclass(frozen=True)
class Confusion:
    """Pixels of one class that are called another."""

    truth: str
    prediction: str
    share: float  # of the class's pixels
    pixels: int


def render(content: PageData) -> str:
    """The whole page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, embedded=embedded)
    template = environment.get_template("report.html.j2")
    return template.render(
        content=content,
        charts=figures.charts(content),
        figure_json=figure_json,
        confusions=confusions(content),
        bins=bins(content),
        class_rows=class_rows(content),
        picture_kinds={n: {"caption": c, "layer": y} for n, (c, y) in captions(content).items()},
        confusion_limit=figures.CONFUSION_CLASSES,
        truth_classes=_shown(content, lambda each: each.ids("truth")),
        predicted_classes=_shown(content, lambda each: each.predicted),
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup((_FOLDER / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as per cent, "–" where it is not known."""
    if fraction is None or np.isnan(fraction):
        return "–"
    return f"{100 * fraction:.{digits}f} %"


def points(after: float | None, before: float | None) -> str:
    """What fractions differ by as :func:`percent` shows them, in percentage points with a sign."""
    if after is None or before is None or np.isnan(after - before):
        return "–"
    rounded = round(round(100 * after, 2) - round(100 * before, 2), 2)
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "±0.00"


def embedded(value: Any) -> Markup:
    """JSON for a script element: no character that HTML could read as markup."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    for character in "<>&'\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def figure_json(chart: figures.Chart) -> Markup:
    """Data and layout of a chart for :func:`embedded`."""
    return embedded(plotly.io.to_json(chart.figure, validate=False))


def captions(content: PageData) -> dict[str, tuple[str, bool]]:
    """The pictures that some image of the gallery has, as in :data:`PICTURES`."""
    kinds = {name: kind for name, kind in PICTURES.items() if content.has(name)}
    if not content.refined and "after" in kinds:
        kinds["after"] = ("prediction", True)
    return kinds


def confusions(content: PageData) -> list[Confusion]:
    """The largest wrong entries of the confusion, by share of the class's pixels."""
    if content.confusion is None:
        return []
    totals = np.maximum(content.confusion.sum(0), 1)
    shares = content.confusion / totals
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:_CONFUSIONS]
    names = [row.name for row in content.classes]
    found = []
    for predicted, true in zip(*np.unravel_index(order, shares.shape)):
        if shares[predicted, true] > 0:
            share, count = float(shares[predicted, true]), int(content.confusion[predicted, true])
            found.append(Confusion(names[true], names[predicted], share, count))
    return found


def class_rows(content: PageData) -> list[dict[str, Any]]:
    """What the browser sorts classes by."""
    labels = figures.labels_of(content.classes)
    return [
        {"id": r.id, "name": r.name, "label": label, "before": r.before or 0, "after": r.after or 0}
        for r, label in zip(content.classes, labels)
    ]


def bins(content: PageData) -> list[dict[str, Any]]:
    """Rows of the table by object size: name, range, and IoU and boundary IoU before and after."""
    if not content.scores:
        return []
    ends = [0, *SIZE_BIN_ENDS, 100]
    rows = []
    for place, name in enumerate(SIZE_BINS):
        row: dict[str, Any] = {"name": name, "range": f"{ends[place]}–{ends[place + 1]}\u00a0%"}
        for step, scores in content.scores.items():
            row[step] = scores.bins[name]
            row[f"{step}_boundary"] = (scores.boundary_bins or {}).get(name)
        rows.append(row)
    return rows


def _shown(content: PageData, ids_of: Any) -> Sequence[tuple[int, str]]:
    """(id, name) of classes that images of the gallery show, by id."""
    ids = sorted({index for each in content.gallery for index in ids_of(each)})
    known = {row.id: row.name for row in content.classes}
    return [(index, known.get(index, f"id {index}")) for index in ids]

"""The charts of the page as plotly figures; colours of page and ink are set in the browser."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.text import duration
from tools.report.collect import ClassRow, PageData
from tools.report.curves import TrainingCurve
from tools.report.extras import ThresholdChoice

# A blue and a vermilion that are legible on white and on black; a hatch tells them apart too.
BEFORE, AFTER = "#2b8cc9", "#d55e00"
_LINES = (AFTER, BEFORE, "#009e73", "#cc79a7", "#9a7d00")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_NAME_LENGTH = 28
# More classes than these would make a matrix that nobody can read.
CONFUSION_CLASSES = 100
_NUMBERED_CLASSES = 15  # with more, cells are too small for their number
_CROWDED_CLASSES = 30  # with more, rows are as narrow as a line of small text
_ROW_PX = 34
_PART_ROW_PX = 38


@dataclass(frozen=True)
class Chart:
    """A figure and what is said about it.

    ``alt`` states in a sentence what a reader who cannot see it would want to know.
    """

    id: str
    title: str
    alt: str
    figure: go.Figure
    caption: str = ""
    min_width: int = 280  # pixels; a narrower window scrolls


def plain(text: str) -> str:
    """A name as text of a chart, where plotly would read tags: escaped, and cut to fit an axis."""
    cut = text if len(text) <= _NAME_LENGTH else text[: _NAME_LENGTH - 1] + "…"
    return html.escape(cut, quote=False)


def labels_of(rows: Sequence[ClassRow]) -> list[str]:
    """Axis labels of classes, each another one: the id and the name."""
    return [f"{row.id} {plain(row.name)}" for row in rows]


def training_chart(index: int, curve: TrainingCurve) -> Chart:
    """Loss and its parts over the steps, the learning rate below."""
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.07)
    for place, (name, values) in enumerate(curve.losses.items()):
        line = {"color": _LINES[place % len(_LINES)], "dash": _DASHES[place % len(_DASHES)]}
        figure.add_trace(_points(plain(name), curve, values, line), row=1, col=1)
    grey = {"color": "#808080"}
    figure.add_trace(_points("learning rate", curve, curve.rates, grey), row=2, col=1)
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="learning rate", row=2, col=1)
    figure.update_xaxes(title_text="step", row=2, col=1)
    _finish(figure, 380, legend=len(curve.losses) > 1)
    loss = [value for value in curve.losses.get("loss", []) if value is not None]
    fall = f"loss from {loss[0]:.4g} to {loss[-1]:.4g}" if loss else "no loss in the log"
    speed = f", {curve.images_per_second:.1f} images/s" if curve.images_per_second else ""
    peak = f", at most {curve.peak_memory_mib:.0f} MiB" if curve.peak_memory_mib else ""
    text = f"{curve.progress}: {fall}{speed}{peak}"
    return Chart(f"training-{index}", curve.title, text, figure, text)


def threshold_chart(choice: ThresholdChoice) -> Chart:
    """mIoU over the background threshold, the chosen one marked."""
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in choice.curve],
            y=[100 * y for _, y in choice.curve],
            mode="lines",
            line={"color": BEFORE},
            hovertemplate="threshold %{x:.2f}: %{y:.2f} %<extra></extra>",
        )
    )
    best = 100 * (choice.miou or 0)
    figure.add_trace(
        go.Scatter(
            x=[choice.threshold],
            y=[best],
            mode="markers+text",
            text=[f"chosen: {choice.threshold:.2f}"],
            textposition="top center",
            cliponaxis=False,
            marker={"color": AFTER, "size": 12, "symbol": "diamond"},
            hovertemplate="chosen: %{x:.2f}, %{y:.2f} %<extra></extra>",
        )
    )
    top = max((100 * y for _, y in choice.curve), default=1)
    figure.update_layout(xaxis_title="background threshold", yaxis_title="mIoU, %")
    figure.update_yaxes(range=[0, 1.18 * top])
    _finish(figure, 320)
    alt = f"{choice.threshold:.2f} gives the best mIoU of the {choice.of}, {best:.2f} %"
    return Chart("threshold", "Threshold curve", alt, figure)


def class_chart(rows: Sequence[ClassRow], refined: bool) -> Chart:
    """IoU of each class, before and after refinement; sorted in the browser."""
    names = labels_of(rows)
    figure = go.Figure()
    series = [("after" if refined else "prediction", [r.after for r in rows], AFTER, "")]
    if refined:
        series.insert(0, ("before", [r.before for r in rows], BEFORE, "/"))
    for name, values, colour, hatch in series:
        figure.add_trace(
            go.Bar(
                name=name,
                orientation="h",
                y=names,
                x=[None if value is None else 100 * value for value in values],
                marker=_filled(colour, hatch),
                hovertemplate="%{y}: %{x:.2f} %<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(title_text="IoU, %", range=[0, 100], side="top")
    figure.update_yaxes(categoryorder="array", categoryarray=names, automargin=True)
    figure.update_yaxes(autorange="reversed")
    _finish(figure, 110 + _ROW_PX * len(rows), legend=refined, above=60)
    best = max(rows, key=lambda row: row.after or 0)
    alt = f"IoU of {len(rows)} classes; the best is {best.name}; the table below has all numbers"
    title = "IoU by class, before and after refinement" if refined else "IoU by class"
    return Chart("classes", title, alt, figure)


def confusion_chart(content: PageData) -> Chart:
    """Share of each class's pixels that each cluster takes; right ones lie on the diagonal."""
    assert content.confusion is not None
    shown = _confused_most(content.confusion)
    pixels = content.confusion.T[np.ix_(shown, shown)]  # [true class, predicted class]
    totals = content.confusion.sum(0)[shown]
    rows = [content.classes[index] for index in shown]
    columns = [
        "background" if row.id == 0 else f"cluster {content.clusters.get(row.id, '?')} → {label}"
        for row, label in zip(rows, labels_of(rows))
    ]
    crowded = len(rows) > _CROWDED_CLASSES
    figure = go.Figure(
        go.Heatmap(
            z=np.round(100 * pixels / np.maximum(totals, 1)[:, None], 2).tolist(),
            x=columns,
            y=labels_of(rows),
            customdata=pixels.tolist(),
            zmin=0,
            zmax=100,
            colorscale="Viridis",
            texttemplate="%{z:.0f}" if len(rows) <= _NUMBERED_CLASSES else None,
            colorbar={"title": {"text": "%"}, "thickness": 14},
            hovertemplate="%{z:.1f} % of %{y} (%{customdata} pixels)<br>are %{x}<extra></extra>",
            xgap=0 if crowded else 1,
            ygap=0 if crowded else 1,
        )
    )
    figure.update_xaxes(title_text="prediction", tickangle=-90 if crowded else -45, side="bottom")
    figure.update_yaxes(title_text="truth", title_standoff=14, autorange="reversed")
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(automargin=True, dtick=1, tickfont_size=10 if crowded else 13)
    _finish(figure, 230 + (14 if crowded else 36) * len(rows))
    alt = "The largest confusions are listed in the table below"
    width = 280 + (14 if crowded else 24) * len(rows)
    return Chart("confusion", "Clusters and classes", alt, figure, min_width=width)


def frequency_chart(content: PageData) -> Chart:
    """Images that show each class, in the prediction and in the truth."""
    rows = content.classes[1:]
    figure = go.Figure()
    series = [("prediction", [row.predicted_images for row in rows], AFTER, "")]
    if any(row.truth_images is not None for row in rows):
        series.append(("truth", [row.truth_images or 0 for row in rows], BEFORE, "/"))
    for name, values, colour, hatch in series:
        figure.add_trace(
            go.Bar(
                name=name,
                orientation="h",
                y=labels_of(rows),
                x=values,
                marker=_filled(colour, hatch),
                hovertemplate="%{y}: %{x} images<extra>" + name + "</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(title_text="images that show it", side="top", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    _finish(figure, 110 + _ROW_PX * len(rows), legend=len(series) > 1, above=60)
    never = [row.name for row in rows if not row.predicted_images]
    alt = f"{len(never)} of {len(rows)} classes are predicted in no image"
    return Chart("frequencies", "How often each class appears", alt, figure, alt)


def seconds_chart(seconds: dict[str, float], images: int) -> Chart:
    """Mean time an image by part of refinement."""
    texts = [f"{value:.3f} s" for value in seconds.values()]
    figure = _rows(seconds, texts, "seconds an image", "%{x:.3f} s")
    alt = f"{sum(seconds.values()):.3f} s an image, the mean of {images} images"
    return Chart("seconds", "Time by part of refinement", alt, figure, alt)


def masks_chart(counts: Sequence[int], shares: Sequence[float]) -> Chart:
    """How many masks the gallery's images have, and how large they are."""
    figure = make_subplots(cols=2, horizontal_spacing=0.2)
    figure.add_trace(
        go.Histogram(x=list(counts), nbinsx=24, marker={"color": BEFORE}), row=1, col=1
    )
    figure.add_trace(
        go.Histogram(
            x=[100 * s for s in shares],
            xbins={"start": 0, "end": 100, "size": 5},
            marker={"color": AFTER},
        ),
        row=1,
        col=2,
    )
    figure.update_xaxes(title_text="masks an image", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="images", row=1, col=1)
    figure.update_xaxes(title_text="% of the image", range=[0, 100], row=1, col=2)
    figure.update_yaxes(title_text="masks", row=1, col=2)
    _finish(figure, 300)
    alt = (
        f"{len(counts)} images have masks, {np.mean(counts):.0f} on average, from {min(counts)} to "
        f"{max(counts)}; half of the masks cover less than {100 * np.median(shares):.1f} % of "
        "their image"
    )
    return Chart("masks", "Masks of the gallery's images", alt, figure, alt)


def times_chart(times: dict[str, float]) -> Chart:
    """Wall-clock time of the stages."""
    minutes = {plain(name): value / 60 for name, value in times.items()}
    texts = [duration(value) for value in times.values()]
    figure = _rows(minutes, texts, "minutes", "%{x:.2f} min")
    alt = f"{duration(sum(times.values()))} in all"
    return Chart("times", "Time by stage", alt, figure, alt)


def _rows(values: dict[str, float], texts: list[str], title: str, hover: str) -> go.Figure:
    """A row with a bar for each value, its text behind it."""
    figure = go.Figure(
        go.Bar(
            orientation="h",
            y=list(values),
            x=list(values.values()),
            text=texts,
            textposition="outside",
            cliponaxis=False,
            marker={"color": BEFORE},
            hovertemplate=f"%{{y}}: {hover}<extra></extra>",
        )
    )
    top = max(values.values(), default=1.0)
    figure.update_xaxes(title_text=title, range=[0, 1.2 * top or 1])
    figure.update_yaxes(autorange="reversed", automargin=True)
    _finish(figure, 90 + _PART_ROW_PX * len(values))
    figure.update_layout(margin_r=56)  # room for the text behind the longest bar on a phone
    return figure


def charts(content: PageData) -> dict[str, list[Chart]]:
    """The charts of each section; sections without data have none."""
    found: dict[str, list[Chart]] = {"training": [], "threshold": [], "classes": []}
    found.update({"confusion": [], "refinement": [], "frequencies": [], "times": []})
    found["training"] = [training_chart(i, curve) for i, curve in enumerate(content.curves)]
    if content.times:
        found["times"] = [times_chart(content.times)]
    if content.threshold and content.threshold.curve:
        found["threshold"] = [threshold_chart(content.threshold)]
    if content.scores:
        found["classes"] = [class_chart(content.classes, content.refined)]
        found["confusion"] = [confusion_chart(content)]
    if content.classes:
        found["frequencies"] = [frequency_chart(content)]
    if content.refinement and content.refinement.seconds():
        images = len(content.refinement.images)
        found["refinement"].append(seconds_chart(content.refinement.seconds(), images))
    counts = [each.masks for each in content.gallery if each.masks is not None]
    shares = [share for each in content.gallery for share in each.mask_shares]
    if counts and shares:
        found["refinement"].append(masks_chart(counts, shares))
    return found


def _confused_most(confusion: np.ndarray) -> np.ndarray:
    """Ids to show: all, or those of the lowest share of right pixels, in order."""
    right = np.diag(confusion) / np.maximum(confusion.sum(0), 1)
    return np.sort(np.argsort(right, kind="stable")[:CONFUSION_CLASSES])


def _filled(colour: str, hatch: str) -> dict[str, Any]:
    """A bar's filling; hatched with white where ``hatch`` names a pattern."""
    pattern = {"shape": hatch, "fillmode": "overlay", "fgcolor": "#ffffff", "size": 7}
    return {"color": colour, "pattern": {**pattern, "solidity": 0.2}}


def _points(
    name: str, curve: TrainingCurve, values: Sequence[float | None], line: dict[str, Any]
) -> go.Scatter:
    return go.Scatter(
        name=name,
        x=curve.steps,
        y=list(values),
        customdata=curve.epochs,
        mode="lines+markers" if len(values) < 40 else "lines",
        line=line,
        marker={"size": 5},
        showlegend=name != "learning rate",
        hovertemplate="epoch %{customdata}, step %{x}: %{y:.5g}<extra>" + name + "</extra>",
    )


def _finish(figure: go.Figure, height: int, legend: bool = False, above: int = 0) -> None:
    """What all charts share; ``above`` is the height in pixels of an axis on top of the plot."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 24, "t": (28 if legend else 16) + above, "b": 16 if above else 52},
        showlegend=legend,
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
    )

"""Draws ``stages.svg``, the figure of ``method.md``: ``python docs/stages.py`` writes it anew.

Numbers, names, scripts and products of the stages come from the pipeline's own table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.pipeline.stage import Stage  # noqa: E402
from uss import pipeline as uss  # noqa: E402

FILE = Path(__file__).with_name("stages.svg")
WIDTH, HEIGHT = 1000, 430
_FONT = "font-family='Helvetica, Arial, sans-serif'"
_BOX_W, _BOX_H, _GAP, _LEFT, _TOP = 220, 250, 26, 21, 70

# What a box shows: its stages, its title, the colour of its frame, and what happens.
BOXES: tuple[tuple[tuple[Stage, ...], str, str, tuple[str, ...]], ...] = (
    (
        (uss.PRETRAIN,),
        "Pretrain",
        "#0072b2",
        ("ResNet learns from crops", "of images without labels:", "", "image to image (SwAV)")
        + ("deep to shallow", "pixel to pixel"),
    ),
    (
        (uss.PIXEL_ATTENTION, uss.CLUSTER),
        "Attend and cluster",
        "#009e73",
        ("pixel attention finds what", "images are about;", "", "k-means of attended")
        + ("features: one cluster", "for each class"),
    ),
    (
        (uss.PSEUDO_LABELS,),
        "Label with SAM",
        "#d55e00",
        ("each SAM mask takes the", "nearest centre;", "", "background where its")
        + ("mean attention is below", "a threshold"),
    ),
    (
        (uss.FINETUNE, uss.PREDICT, uss.REFINE),
        "Fine-tune, refine",
        "#aa4499",
        ("UPerNet learns from the", "pseudo labels;", "", "its prediction is voted on")
        + ("by SAM's masks", "of the image"),
    ),
)


def title(index: int) -> str:
    """Numbers of the steps and what they do: "3, 4  Fine-tune, refine"."""
    stages, words, _, _ = BOXES[index]
    steps = [stage.step for stage in stages if stage.step]
    # Steps of one number (2.1, 2.2) are shown by it.
    shown = steps if len(steps) == 1 else list(dict.fromkeys(s.partition(".")[0] for s in steps))
    return f"{', '.join(shown)}  {words}"


def product(index: int) -> str:
    """What comes out of a box: the products of its stages, the last one where a script ends it."""
    stages = BOXES[index][0]
    last = stages[-1]
    return last.product if last.is_script else ", ".join(stage.product for stage in stages)


def scripts(index: int) -> str:
    """The scripts that run the stages of a box."""
    return ", ".join(dict.fromkeys(stage.script for stage in BOXES[index][0]))


def text(x: float, y: float, words: str, size: int, more: str = "") -> str:
    """One centred line of text."""
    return (
        f"<text x='{x:g}' y='{y:g}' {_FONT} font-size='{size}' text-anchor='middle' {more}>"
        f"{escape(words)}</text>"
    )


def box(index: int) -> list[str]:
    """The parts of one box: frame, title, lines, product, scripts, arrow to the next one."""
    _, _, colour, lines = BOXES[index]
    x = _LEFT + index * (_BOX_W + _GAP)
    middle = x + _BOX_W / 2
    parts = [
        f"<rect x='{x}' y='{_TOP}' width='{_BOX_W}' height='{_BOX_H}' rx='10' fill='#ffffff' "
        f"stroke='{colour}' stroke-width='3'/>",
        text(middle, _TOP + 34, title(index), 17, f"font-weight='bold' fill='{colour}'"),
    ]
    parts += [
        text(middle, _TOP + 70 + 23 * row, line, 14, "fill='#222222'")
        for row, line in enumerate(lines)
    ]
    parts.append(
        f"<rect x='{x + 20}' y='{_TOP + 204}' width='{_BOX_W - 40}' height='32' rx='6' "
        f"fill='{colour}'/>"
    )
    parts.append(text(middle, _TOP + 225, product(index), 16, "fill='#ffffff'"))
    parts.append(text(middle, _TOP + _BOX_H + 28, scripts(index), 15, "fill='#444444'"))
    if index + 1 < len(BOXES):
        tip, y = x + _BOX_W + _GAP - 2, _TOP + _BOX_H / 2
        parts.append(
            f"<path d='M{tip - 20} {y - 9:g} L{tip} {y:g} L{tip - 20} {y + 9:g} Z' fill='#444444'/>"
        )
    return parts


def drawing() -> str:
    """The whole figure as SVG."""
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' "
        f"width='{WIDTH}' height='{HEIGHT}' role='img' aria-label='The four stages'>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>",
        text(WIDTH / 2, 42, "From images without labels to label maps", 22, "fill='#222222'"),
    ]
    for index in range(len(BOXES)):
        parts += box(index)
    step = uss.PSEUDO_LABELS.step
    note = f"Masks of the validation split choose the threshold of {step} and name the clusters at"
    parts.append(text(WIDTH / 2, HEIGHT - 44, f"{note} the end.", 15, "fill='#444444'"))
    note = "Nothing else in the pipeline reads ground truth."
    parts.append(text(WIDTH / 2, HEIGHT - 20, note, 15, "fill='#444444'"))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")

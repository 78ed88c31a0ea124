"""Draws ``stages.svg``, the figure of ``method.md``: ``python docs/stages.py`` writes it anew."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).with_name("stages.svg")
WIDTH, HEIGHT = 1000, 430
_FONT = "font-family='Helvetica, Arial, sans-serif'"
_BOX_W, _BOX_H, _GAP, _LEFT, _TOP = 220, 250, 26, 21, 70

# Title, colour of the frame, what happens, what comes out.
STAGES = (
    (
        "1  Pretrain",
        "#0072b2",
        ("ResNet learns from crops", "of images without labels:", "", "image to image (SwAV)")
        + ("deep to shallow", "pixel to pixel"),
        "trunk, prototypes",
    ),
    (
        "2  Attend and cluster",
        "#009e73",
        ("pixel attention finds what", "images are about;", "", "k-means of attended")
        + ("features: one cluster", "for each class"),
        "attention, centres",
    ),
    (
        "2.3  Label with SAM",
        "#d55e00",
        ("each SAM mask takes the", "nearest centre;", "", "background where its")
        + ("mean attention is below", "a threshold"),
        "pseudo labels",
    ),
    (
        "3, 4  Fine-tune, refine",
        "#aa4499",
        ("UPerNet learns from the", "pseudo labels;", "", "its prediction is voted on")
        + ("by SAM's masks", "of the image"),
        "result.zip",
    ),
)
SCRIPTS = ("train_1.sh, train_2.sh", "train_1.sh, train_2.sh", "train_3.sh", "train_4.sh, test.py")


def text(x: float, y: float, words: str, size: int, more: str = "") -> str:
    """One centred line of text."""
    return (
        f"<text x='{x:g}' y='{y:g}' {_FONT} font-size='{size}' text-anchor='middle' {more}>"
        f"{escape(words)}</text>"
    )


def box(index: int) -> list[str]:
    """The parts of stage ``index``: frame, title, lines, product, script, arrow to the next one."""
    title, colour, lines, product = STAGES[index]
    x = _LEFT + index * (_BOX_W + _GAP)
    middle = x + _BOX_W / 2
    parts = [
        f"<rect x='{x}' y='{_TOP}' width='{_BOX_W}' height='{_BOX_H}' rx='10' fill='#ffffff' "
        f"stroke='{colour}' stroke-width='3'/>",
        text(middle, _TOP + 34, title, 17, f"font-weight='bold' fill='{colour}'"),
    ]
    parts += [
        text(middle, _TOP + 70 + 23 * row, line, 14, "fill='#222222'")
        for row, line in enumerate(lines)
    ]
    parts.append(
        f"<rect x='{x + 20}' y='{_TOP + 204}' width='{_BOX_W - 40}' height='32' rx='6' "
        f"fill='{colour}'/>"
    )
    parts.append(text(middle, _TOP + 225, product, 16, "fill='#ffffff'"))
    parts.append(text(middle, _TOP + _BOX_H + 28, SCRIPTS[index], 15, "fill='#444444'"))
    if index + 1 < len(STAGES):
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
    for index in range(len(STAGES)):
        parts += box(index)
    note = "Masks of the validation split choose the threshold of 2.3 and name the clusters at the"
    parts.append(text(WIDTH / 2, HEIGHT - 44, f"{note} end.", 15, "fill='#444444'"))
    note = "Nothing else in the pipeline reads ground truth."
    parts.append(text(WIDTH / 2, HEIGHT - 20, note, 15, "fill='#444444'"))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")

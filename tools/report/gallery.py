"""The images of the page: which ones, and what is told about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from core import log
from core.data.images import load_rgb
from core.data.items import ImageItem
from core.data.label_maps import IGNORE, load_label
from core.data.layout import open_layout
from core.data.rle import area
from core.errors import UserError
from core.scoring.metrics import lookup_table
from refine.mask_sources import largest_first
from tools.report import pictures
from tools.report.label_scores import ImageSummary, Matches, SplitScores, folders_of, renamed
from tools.report.refinement import RefinementFacts, StoredMasks
from tools.report.run_files import STAGE, RunFiles
from tools.submission.results import Match

Attention = Callable[[np.ndarray], np.ndarray]
_SAME = 1e-4  # a change of mIoU below a hundredth of a per cent counts as none
_LEAST_SHARE = 0.001  # of the pixels; smaller regions are not listed


@dataclass(frozen=True)
class Region:
    """A class and its share of the image's pixels."""

    id: int
    name: str
    colour: str
    share: float


@dataclass
class Picture:
    """An image of the gallery. Scores are fractions; None where there is no truth."""

    key: str
    height: int = 0
    width: int = 0
    before: float | None = None
    after: float | None = None
    rule: str = ""
    seconds: float | None = None
    masks: int | None = None  # how many
    attention: tuple[float, float] | None = None  # lowest and highest value
    mask_shares: list[float] = field(default_factory=list)
    regions: dict[str, list[Region]] = field(default_factory=dict)  # "truth", "before", "after"
    uris: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def gain(self) -> float | None:
        """Change of mIoU by refinement."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def change(self) -> str:
        """ "better", "worse" or "same"; "" where it is not known."""
        if self.gain is None:
            return ""
        return "same" if abs(self.gain) < _SAME else "better" if self.gain > 0 else "worse"

    def ids(self, which: str) -> list[int]:
        """Classes, background left out, that ``which`` of the label maps shows."""
        return [region.id for region in self.regions.get(which, []) if region.id]

    @property
    def predicted(self) -> list[int]:
        """Classes that either prediction shows."""
        return sorted({*self.ids("before"), *self.ids("after")})


@dataclass(frozen=True)
class GalleryInputs:
    """What pictures are made from."""

    sources: RunFiles
    names: Sequence[str]  # of the ids 0..C
    matched: Matches
    judgement: SplitScores | None
    refinement: RefinementFacts
    masks: StoredMasks | None = None
    attention: Attention | None = None


def choose(
    items: Sequence[ImageItem], judgement: SplitScores | None, limit: int
) -> list[ImageItem]:
    """At most ``limit`` items, sorted by key: all, else the worst, those that refinement changed
    most, and the rest spread evenly.
    """
    if len(items) <= limit:
        return list(items)
    chosen: dict[str, ImageItem] = {}
    if judgement is not None:
        gains = judgement.gains
        judged = [
            item for item in items if not np.isnan(gains.get(item.key, {}).get("after", np.nan))
        ]
        worst = sorted(judged, key=lambda item: gains[item.key]["after"])
        changed = sorted(judged, key=lambda item: -abs(_gain(gains[item.key])))
        for item in (*worst[: limit // 3], *changed[: limit // 3]):
            chosen[item.key] = item
    rest = [item for item in items if item.key not in chosen]
    wanted = limit - len(chosen)
    for place in range(wanted):
        item = rest[place * len(rest) // wanted]
        chosen[item.key] = item
    return [chosen[key] for key in sorted(chosen)]


def make_gallery(
    sight: GalleryInputs, items: Sequence[ImageItem], looks: dict[str, ImageSummary]
) -> list[Picture]:
    """Pictures of the items, in order; a broken image is a ``problem``."""
    return [
        _picture(sight, item, looks[item.key])
        for item in log.progress(items, f"{STAGE}: gallery", total=len(items))
    ]


def _gain(scores: dict[str, float]) -> float:
    return scores["after"] - scores.get("before", scores["after"])


def _picture(sight: GalleryInputs, item: ImageItem, seen: ImageSummary) -> Picture:
    picture = Picture(item.key, problem=seen.problem)
    scores = sight.judgement.gains.get(item.key, {}) if sight.judgement else {}
    known = {name: value for name, value in scores.items() if not np.isnan(value)}
    picture.before, picture.after = known.get("before"), known.get("after")
    facts = sight.refinement.images.get(item.key)
    if facts is not None:
        picture.rule, picture.seconds = facts.rule, sum(facts.seconds.values())
    match = sight.matched.of["after"]
    for name, shares in seen.shares.items():
        picture.regions[name] = _regions(shares, None if name == "truth" else match, sight.names)
    try:
        rgb = load_rgb(item.path)
        picture.height, picture.width = rgb.shape[:2]
        picture.uris["image"] = pictures.photo(rgb)
        _add_labels(sight, item, picture)
        _add_sam(sight, picture, rgb)
    except UserError as error:
        picture.problem = picture.problem or str(error)
    return picture


def _add_labels(sight: GalleryInputs, item: ImageItem, picture: Picture) -> None:
    sources, match = sight.sources, sight.matched.of["after"]
    for name, folder in folders_of(sources).items():
        label = load_label(folder / f"{item.key}.png")
        if match is not None:
            label = lookup_table(match, len(match) - 1)[np.minimum(label, len(match) - 1)]
        picture.uris[name] = pictures.label_layer(label)
    if sources.has_truth and sources.data and sources.split:
        truth = open_layout(sources.data).truth(sources.split, item.key)
        picture.uris["truth"] = pictures.label_layer(np.minimum(truth, IGNORE))


def _add_sam(sight: GalleryInputs, picture: Picture, rgb: np.ndarray) -> None:
    records = sight.masks.get(picture.key, rgb) if sight.masks else None
    if records is not None:
        size_hw = (rgb.shape[0], rgb.shape[1])
        pixels = size_hw[0] * size_hw[1]
        picture.masks = len(records)
        picture.mask_shares = [area(record["segmentation"]) / pixels for record in records]
        picture.uris["masks"] = pictures.mask_layer(largest_first(records), size_hw)
    if sight.attention is not None:
        attention = sight.attention(rgb)
        picture.attention = float(attention.min()), float(attention.max())
        picture.uris["attention"] = pictures.attention_picture(rgb, attention)


def _regions(shares: dict[int, float], match: Match | None, names: Sequence[str]) -> list[Region]:
    # Background comes last: it says least.
    return [
        Region(
            index,
            names[index] if index < len(names) else f"id {index}",
            pictures.hex_colour(index) if index != IGNORE else "#ffffff",
            share,
        )
        for index, share in sorted(renamed(shares, match).items(), key=lambda each: each[0] == 0)
        if share >= _LEAST_SHARE
    ]

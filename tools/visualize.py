"""``python -m NAME visualize IMAGE...``: what the networks see in any image, as PNG files.

An id has the same colour in every picture, the colours are told apart under the common
colour-vision deficiencies as far as their number allows, and every region has its id written on it.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core import config as core_config
from core import log
from core.data.imagenet_s import ImageItem
from core.data.images import load_rgb
from core.data.label_maps import label_of_png
from core.errors import UserError
from core.files import atomic_write, sha256_of
from core.pictures import heat, label_colours, overlay
from core.pipeline.folders import CHECKPOINT, RUNS, VALIDATION, RunFolder
from core.pipeline.presets import preset_or_trained
from core.pipeline.stage import Pipeline, SegmenterAccess, hook, pipeline_of
from core.scoring.matching import read_match
from tools import flags
from tools.data.check import walk_images
from tools.submission.results import kept_match

STAGE = "visualize"
_LINE = 20  # pixels of a line of the legend
_FONT = 14
_LEAST_WIDTH = 260
_NAMED_SHARE = 0.004  # of the picture that a region must have to bear its id
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_BAR = 12

Painter = Callable[[Path, np.ndarray], Image.Image]


@dataclass(frozen=True)
class Names:
    """What ids mean: a class, or a cluster where no match is known."""

    match: dict[int, int] | None
    classes: Sequence[str]

    def of(self, index: int) -> str:
        """An id after the match, in words that begin or end with its number."""
        if index <= len(self.classes) and self.match is not None:
            return f"{index} {self.classes[index - 1]}"
        return f"{'cluster' if self.match is None else 'class'} {index}"


def main(arguments: list[str], pipeline: Pipeline) -> int:
    """Paint every image in every way that was asked for; 1 where one cannot be read."""
    options = _parser(pipeline).parse_args(arguments)
    images = list(_images(options.images))
    name = options.preset or pipeline.presets[0]
    root = (options.run or RUNS / name).absolute()
    pipeline = pipeline_of(RunFolder(root), pipeline)
    run = pipeline.run_folder(root, given_checkpoint=options.pretrained)
    if options.run is not None and not options.run.is_dir():
        raise UserError(f"{options.run} is not a folder; name the run folder (runs/PRESET)")
    taken: set[Path] = set()
    broken: dict[Path, str] = {}
    for kind in dict.fromkeys(options.show or ["prediction"]):
        with _painter(kind, options, pipeline, run) as paint:
            for path in log.progress(images, f"{STAGE} {kind}", len(images)):
                try:
                    rgb = load_rgb(path)
                except UserError as error:
                    broken[path] = str(error)
                    continue
                picture = paint(path, rgb)
                target = _target(options.out, path, kind, taken)
                with atomic_write(target) as file:
                    picture.save(file, format="PNG")
    for text in broken.values():
        log.warn(STAGE, text)
    log.info(STAGE, f"{len(taken)} pictures in {options.out}")
    return int(bool(broken))


def _parser(pipeline: Pipeline) -> argparse.ArgumentParser:
    parser = flags.Parser(prog=f"python -m {pipeline.name} visualize", description=__doc__)
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them")
    kinds = "what to lay over them; may be repeated (prediction)"
    add("--show", action="append", choices=sorted({*_PAINTERS, *pipeline.maps}), help=kinds)
    add("--out", type=Path, default=Path("pictures"), help="folder of the pictures (pictures)")
    flags.add_place(parser, flags.RUN, "run folder (runs/PRESET)")
    add("--preset", choices=sorted(pipeline.presets), help="settings (those of the run)")
    flags.add_set(parser)
    add("--pretrained", type=Path, help="segmenter, or network of the attention (the run's)")
    parser.set_defaults(arch=None)
    if pipeline.trunks:
        trunk = f"trunk of the maps ({pipeline.trunks[0]})"
        add("--arch", choices=pipeline.trunks, default=pipeline.trunks[0], help=trunk)
    flags.add_place(parser, flags.MATCH_FILE, "match.json (that of the run)")
    flags.add_place(parser, flags.DATA, "data set that names the classes")
    return parser


def _images(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = list(walk_images(path))
            if not found:
                raise UserError(f"no images in {path}: expected .JPEG, .jpg or .png files")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path} does not exist; name image files or folders of them")


def _target(folder: Path, image: Path, kind: str, taken: set[Path]) -> Path:
    """A file name that no other picture of this call has."""
    target, number = folder / f"{image.stem}_{kind}.png", 1
    while target in taken:
        number += 1
        target = folder / f"{image.stem}_{number}_{kind}.png"
    taken.add(target)
    return target


# Painters ---------------------------------------------------------------------------------------


def _config(options: argparse.Namespace, pipeline: Pipeline, path: Path | None) -> Any:
    """Settings of --preset, else those that the network was trained with; then --set."""
    config = preset_or_trained(pipeline, options.preset, path)
    return core_config.override(config, options.set)


def _segmenter(pipeline: Pipeline, run: Any) -> tuple[SegmenterAccess, Path]:
    """How the pipeline's segmenter is loaded, and its checkpoint.

    Raises:
        UserError: the pipeline has none, or the run has not made it yet.
    """
    if pipeline.segmenter is None:
        raise UserError(f"{pipeline.name} trains no segmenter: choose another --show")
    return pipeline.segmenter, pipeline.segmenter.checkpoint(run)


@contextlib.contextmanager
def _predictions(options: argparse.Namespace, pipeline: Pipeline, run: Any) -> Iterator[Painter]:
    from refine.segmenter import Segmenter

    access, path = _segmenter(pipeline, run)
    settings = _config(options, pipeline, path).predict
    model, facts = hook(access.load)(path, fixed_pool=settings.fixed_pool)
    segmenter = Segmenter(model, facts, settings)
    names = _names(options, run, path, segmenter.facts.num_classes)

    def paint(_: Path, rgb: np.ndarray) -> Image.Image:
        return labelled(rgb, segmenter(rgb), names)

    yield paint


@contextlib.contextmanager
def _refined(options: argparse.Namespace, pipeline: Pipeline, run: Any) -> Iterator[Painter]:
    from refine.one_image import Refiner, Setup
    from refine.settings import Sections

    access, path = _segmenter(pipeline, run)
    names = _names(options, run, path, hook(access.facts)(path).num_classes)
    with tempfile.TemporaryDirectory() as masks:
        config = Sections.of(_config(options, pipeline, path))
        refiner = Refiner(Setup(config, access.load, path, None, Path(masks)))

        def paint(image: Path, rgb: np.ndarray) -> Image.Image:
            made = refiner(ImageItem(image, image.stem))
            return labelled(rgb, label_of_png(made.contents[0]), names)

        yield paint


@contextlib.contextmanager
def _masks(options: argparse.Namespace, pipeline: Pipeline, run: Any) -> Iterator[Painter]:
    from refine.mask_sources import largest_first, mask_source

    own = run.segmenter / CHECKPOINT
    source = mask_source(_config(options, pipeline, own if own.is_file() else None).masks)

    def paint(_: Path, rgb: np.ndarray) -> Image.Image:
        label = np.zeros(rgb.shape[:2], np.int32)
        count = 0
        for mask in largest_first(source.generate(rgb)):
            count += 1
            label[mask] = count
        return with_legend(overlay(rgb, label), [(None, f"{count} masks")])

    yield paint


@contextlib.contextmanager
def _map(name: str, options: argparse.Namespace, pipeline: Pipeline, run: Any) -> Iterator[Painter]:
    """Maps that a network of the pipeline gives; see ``core.pipeline.stage.Pipeline.maps``."""

    def settings(checkpoint: Path) -> dict[str, Any]:
        return core_config.to_dict(_config(options, pipeline, checkpoint))

    level = hook(pipeline.maps[name])(run, settings, options.arch)

    def paint(_: Path, rgb: np.ndarray) -> Image.Image:
        return heated(rgb, level(rgb), name)

    yield paint


# What every pipeline with a segmenter can show; its own maps come beside.
_PAINTERS = {"prediction": _predictions, "refined": _refined, "masks": _masks}


def _painter(
    kind: str, options: argparse.Namespace, pipeline: Pipeline, run: Any
) -> contextlib.AbstractContextManager[Painter]:
    if kind in pipeline.maps:
        return _map(kind, options, pipeline, run)
    return _PAINTERS[kind](options, pipeline, run)


def _names(options: argparse.Namespace, run: Any, segmenter: Path, num_classes: int) -> Names:
    """The match of the run's validation split, and the class folders of the data set."""
    from core.data.layout import open_layout

    if options.match_file:
        match: dict[int, int] | None = read_match(options.match_file, num_classes)
    else:
        folders = (run.result, run.predictions(VALIDATION))
        kept = kept_match(folders, sha256_of(segmenter), num_classes)
        match = kept[0] if kept else None
    classes = []
    if options.data and match is not None:
        classes = open_layout(options.data).class_names("train")
    return Names(match, classes if len(classes) == num_classes else [])


# Pictures ---------------------------------------------------------------------------------------


def labelled(rgb: np.ndarray, label: np.ndarray, names: Names) -> Image.Image:
    """A label map (H, W) over its uint8 RGB image (H, W, 3): tinted regions that bear their id,
    and a legend by area.
    """
    if names.match is not None:
        table = np.arange(int(label.max()) + 1)
        for cluster, index in names.match.items():
            if cluster < len(table):
                table[cluster] = index
        label = table[label].astype(np.int32)
    picture = Image.fromarray(overlay(rgb, label))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=_FONT)
    for index, (x, y) in _places(label):
        draw.text((x, y), str(index), _PAPER, font, "mm", stroke_width=2, stroke_fill=_INK)
    ids, counts = np.unique(label, return_counts=True)
    colours = label_colours(int(ids.max()) + 1)
    entries = []
    for place in np.argsort(-counts, kind="stable"):
        index, share = int(ids[place]), counts[place] / label.size
        name = names.of(index) if index else "background"
        entries.append((tuple(colours[index].tolist()) if index else None, f"{name}: {share:.0%}"))
    return with_legend(np.asarray(picture), entries)


def heated(rgb: np.ndarray, level: np.ndarray, name: str = "attention") -> Image.Image:
    """A map (h, w) over its uint8 RGB image (H, W, 3), from blue, its lowest value, to yellow, its
    highest; a scale below names both.
    """
    height, width = rgb.shape[:2]
    full = cv2.resize(level.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    low, high = float(level.min()), float(level.max())
    spread = np.asarray((full - low) / max(high - low, 1e-6))
    grey = rgb.mean(axis=2, keepdims=True)
    mixed = (0.65 * heat(spread) + 0.35 * grey).round().astype(np.uint8)
    picture = with_legend(mixed, [(None, f"{name}, mean {level.mean():.2f}")])
    scale = heat(np.tile(np.linspace(0, 1, picture.width, dtype=np.float32), (_BAR, 1)))
    page = Image.new("RGB", (picture.width, picture.height + _BAR + _LINE), _PAPER)
    page.paste(picture, (0, 0))
    page.paste(Image.fromarray(scale), (0, picture.height))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=_FONT)
    bottom = picture.height + _BAR + 2
    draw.text((2, bottom), f"{low:.2f}", _INK, font)
    draw.text((page.width - 2, bottom), f"{high:.2f}", _INK, font, "ra")
    return page


def with_legend(
    picture: np.ndarray, entries: Sequence[tuple[tuple[int, ...] | None, str]]
) -> Image.Image:
    """A uint8 RGB picture (H, W, 3) with lines below it; each has a colour or none, and a text."""
    height, width = picture.shape[:2]
    page = Image.new("RGB", (max(width, _LEAST_WIDTH), height + 4 + _LINE * len(entries)), _PAPER)
    page.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=_FONT)
    for number, (colour, text) in enumerate(entries):
        top = height + 4 + _LINE * number
        if colour is not None:
            draw.rectangle((4, top + 2, 4 + _FONT, top + 2 + _FONT), colour, _INK)
        draw.text((4 if colour is None else 10 + _FONT, top + 1), text, _INK, font)
    return page


def _places(label: np.ndarray) -> Iterator[tuple[int, tuple[int, int]]]:
    """(id, innermost point (x, y)) of each connected region that is not tiny; no background."""
    least = max(_NAMED_SHARE * label.size, _FONT**2 / 2)
    for index in np.unique(label[label > 0]):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((label == index).astype(np.uint8))
        for part in range(1, count):
            if stats[part, cv2.CC_STAT_AREA] < least:
                continue
            inside = np.pad((parts == part).astype(np.uint8), 1)
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            yield int(index), (int(x), int(y))

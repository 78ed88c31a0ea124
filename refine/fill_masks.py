"""Fill the mask store of a split before the stages that read it, in as many processes as there are.

Each image is claimed first, so none is made twice (see ``core.work.sharing``). Any of the processes
may be killed and started again at any time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import log
from core.data.images import load_rgb
from core.data.items import ImageItem
from core.data.layout import open_layout
from core.distributed import share
from core.errors import StopWork, UserError
from core.pipeline.folders import RunFolder
from core.text import named
from core.work.claims import IMAGE_TIMEOUT_S, TIMEOUT_S, Claims
from core.work.mask_store import ImageIdentity
from core.work.sharing import work_together
from refine.mask_sources import ImageMasks, mask_source

STAGE = "masks"


@dataclass
class Tally:
    """What one process did."""

    made: int = 0
    bytes: int = 0
    seconds: float = 0.0  # spent on the images made
    failed: dict[str, str] = field(default_factory=dict)  # key -> reason


def run(
    config: Any,
    data: Path,
    run: RunFolder,
    split: str = "train",
    check: bool = False,
    image_timeout_s: float = IMAGE_TIMEOUT_S,
) -> int:
    """Make the masks of every image of a split that has none in ``run.masks(split)``.

    What is there is told from file names alone; an image that was replaced is noticed by the stage
    that reads it.

    Args:
        config: of any pipeline; its section ``masks`` is read, a :class:`refine.settings.Masks`.
        check: make nothing; read what is there, name the broken files and remove them.
        image_timeout_s: see :func:`fill`.

    Returns:
        exit code: 1 when images could not be read, or when files were broken.

    Raises:
        UserError: no such split, no SAM weights, or the store cannot be written.
    """
    items = open_layout(data).images(split)
    images = ImageMasks(mask_source(config.masks), run.masks(split))
    stage = f"{STAGE} {split}"
    if check:
        return int(check_files(items, images, stage) > 0)
    try:
        tally = fill(items, images, stage, image_timeout_s=image_timeout_s)
        images.store.remove_leftovers()
    except OSError as error:
        raise UserError(f"cannot write masks to {images.store.folder}: {error}") from error
    return int(bool(tally.failed))


def fill(
    items: list[ImageItem],
    images: ImageMasks,
    stage: str,
    timeout_s: float = TIMEOUT_S,
    image_timeout_s: float = IMAGE_TIMEOUT_S,
) -> Tally:
    """Return when each image has masks, made here or elsewhere, or has failed here.

    Args:
        timeout_s: see :class:`core.work.claims.Claims`.
        image_timeout_s: seconds of work on an image after which another process takes it over.
    """
    tally = Tally()
    by_key = {item.key: item for item in items}
    there = len(items) - len(images.store.missing(by_key))
    if there:
        log.info(stage, f"{there} of {len(items)} are there already")

    with Claims(images.store.claims_folder, timeout_s, image_timeout_s) as claims:

        def unfinished() -> list[str]:
            return [key for key in images.store.missing(by_key) if key not in tally.failed]

        def settle(key: str) -> bool:
            return _settle(by_key[key], images, claims, tally)

        work_together(list(by_key), unfinished, settle, stage)
    _report(tally, len(items), images, stage)
    return tally


def check_files(items: list[ImageItem], images: ImageMasks, stage: str) -> int:
    """Read the stored masks of this process's share of the images, name the broken files and remove
    them; returns how many there were.
    """
    keys = [item.key for item in share(items)]
    broken: dict[str, str] = {}
    missing = 0
    for key in log.progress(keys, f"{stage}, checking", total=len(keys)):
        try:
            fault = images.store.fault(key)
        except FileNotFoundError:
            missing += 1
            continue
        if fault is not None:
            broken[key] = fault
            log.warn(stage, f"{images.store.path(key)} is broken and goes: {fault}")
            images.store.remove(key)
    whole = len(keys) - missing - len(broken)
    log.info(stage, f"{whole} whole, {_counted(broken, 'broken')}, {missing} not there")
    if broken:
        log.info(stage, "run the command without --check to make them again")
    return len(broken)


def _settle(item: ImageItem, images: ImageMasks, claims: Claims, tally: Tally) -> bool:
    """Make the masks of an image unless they are there; False when another process is at it."""
    store, key = images.store, item.key
    if store.has(key):
        return True
    if not claims.claim(key):
        return False
    try:
        # The owner before may have finished just now.
        if store.has(key):
            return True
        started = time.monotonic()
        rgb = load_rgb(item.path)
        records = images.source.generate(rgb)
        if not claims.still_mine(key):
            log.warn(STAGE, f"{key}: this process stood still and another has taken over")
            return False
        tally.bytes += store.put(key, ImageIdentity.of(rgb), records)
        tally.made += 1
        tally.seconds += time.monotonic() - started
    except StopWork:
        raise
    except UserError as error:
        tally.failed[key] = str(error)
        log.warn(STAGE, f"{key} failed: {error}")
    finally:
        claims.release(key)
    return True


def _report(tally: Tally, total: int, images: ImageMasks, stage: str) -> None:
    found = total - tally.made - len(tally.failed)
    text = f"{tally.made} made, {found} found, {_counted(tally.failed, 'failed')}"
    if tally.made:
        text += (
            f"; {tally.seconds / tally.made:.2f} s and {tally.bytes / tally.made:.0f} bytes per "
            f"image, {tally.bytes / 2**20:.1f} MiB"
        )
    log.info(stage, f"{text}: {images.store.folder}")


def _counted(keys: dict[str, str], what: str) -> str:
    return f"{len(keys)} {what} ({named(keys)})" if keys else f"0 {what}"

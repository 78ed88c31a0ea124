"""How long training steps of a preset and SAM's masks of an image take on this machine.

Runs in a process of its own (:func:`answerer`), which starts Jittor and compiles kernels. What a
stage trains comes from the stage: its module has ``rehearsal(config, photo)``, which gives the
training task of the configuration with random weights and a data set of that one photograph. One
that looks at each image once may have ``look(config, photo, counts)`` instead.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.data.imagenet_s import ImageItem
from core.data.loader import stack
from core.memory import resident_mib
from core.synthetic.scenes import KINDS, render
from core.work.pool import usable_cores
from sam.masks import layer_point_grids

MASKS = "masks"
_BATCHES = (2, 4)
_RATE = 1e-6  # small, so that many steps on the same images leave the weights as they are
_SAMPLE_SECONDS = 0.3
_PHOTO_HW = (375, 500)  # of an image of ImageNet
_GRID = 8  # points a side of the measured masks


@dataclass(frozen=True)
class Looked:
    """What a stage takes that looks at each image once (:class:`core.pipeline.rehearsal.Look`)."""

    images: int
    seconds: float
    """In one process that makes samples on all cores."""
    memory_mib: float
    disk_mib: float


@dataclass(frozen=True)
class Step:
    """What a training step takes: ``fixed_s`` and ``fixed_mib`` of itself, the rest an image."""

    fixed_s: float
    image_s: float
    fixed_mib: float
    image_mib: float
    sample_s: float
    """Making what the network sees of an image on one core, its file's decoding included."""
    image_pixels: int
    """What the network sees of an image, all of its crops taken together."""
    on_gpu: bool


def answerer(setup: None) -> Any:
    """For ``core.work.child``: answers (what, configuration, seconds to spend, images by split).

    ``what`` is :data:`MASKS`, answered by the seconds of an image, or the module of a training
    stage, answered by a :class:`Step`, or that of another stage, answered by :class:`Looked`, for
    which the images by split are not None.
    """

    def answer(
        request: tuple[str, Any, float, Mapping[str, int] | None],
    ) -> float | Step | Looked:
        what, config, seconds, counts = request
        if counts is not None:
            return measure_look(what, config, seconds, counts)
        if what == MASKS:
            return measure_masks(config, seconds)
        return measure_step(what, config, seconds)

    return answer


def measure_masks(config: Any, seconds: float) -> float:
    """Seconds for the masks of a photograph, from a coarser grid of points than the preset's."""
    from refine.mask_sources import mask_source

    settings = config.masks
    grids = layer_point_grids(
        settings.points_per_side, settings.crop_n_layers, settings.crop_n_points_downscale_factor
    )
    crops = sum(4**layer for layer in range(len(grids)))
    points = sum(4**layer * len(grid) for layer, grid in enumerate(grids))
    source = mask_source(replace(settings, points_per_side=_GRID, crop_n_layers=0))
    photo = _photo()
    source.generate(photo)
    times: list[float] = []
    encodings: list[float] = []
    begin = time.monotonic()
    while not times or time.monotonic() - begin < seconds / 2:
        encoded, started = source.encoding_s, time.monotonic()
        source.generate(photo)
        encodings.append(source.encoding_s - encoded)
        times.append(time.monotonic() - started)
    encoding, whole = statistics.median(encodings), statistics.median(times)
    if settings.source != "sam":
        return whole
    return encoding * crops + (whole - encoding) * points / _GRID**2


def measure_step(module: str, config: Any, seconds: float) -> Step:
    """Time and memory of steps of a training stage with random weights on a photograph.

    Args:
        module: of the stage; its ``rehearsal(config, photo)`` gives (task, data set).
    """
    with tempfile.TemporaryDirectory() as folder:
        photo = ImageItem(Path(folder) / "photo.jpg", "photo")
        Image.fromarray(_photo()).save(photo.path, "JPEG", quality=90)
        task, dataset = importlib.import_module(module).rehearsal(config, photo)
        rng = np.random.default_rng(0)
        samples = [dataset.get(0, rng) for _ in range(max(_BATCHES))]
        sample_s = _median_s(lambda: dataset.get(0, rng), _SAMPLE_SECONDS)
    collate = getattr(dataset, "collate", stack)
    batches = [collate(samples[:size]) for size in _BATCHES]
    return _step(task, batches, seconds, sample_s, _image_pixels(samples[0]))


def measure_look(module: str, config: Any, seconds: float, counts: Mapping[str, int]) -> Looked:
    """What a stage takes that looks at each image once.

    Args:
        module: of the stage; its ``look(config, photo, counts)`` gives what is measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        photo = ImageItem(Path(folder) / "photo.jpg", "photo")
        Image.fromarray(_photo()).save(photo.path, "JPEG", quality=90)
        look = importlib.import_module(module).look(config, photo, counts)
        rng = np.random.default_rng(0)
        sample = look.dataset.get(0, rng)
        sample_s = _median_s(lambda: look.dataset.get(0, rng), _SAMPLE_SECONDS)
    base = resident_mib()
    sizes = [min(size, look.batch_size) for size in _BATCHES]
    medians, peaks = [], []
    for size in sizes:
        encode = functools.partial(look.encode, stack([sample] * size))
        encode()
        medians.append(_median_s(encode, seconds / 2 / len(_BATCHES)))
        peaks.append(resident_mib("VmHWM"))
    an_image = max(peaks[1] - peaks[0], 0.0) / max(sizes[1] - sizes[0], 1)
    network = max(peaks[1] + (look.batch_size - sizes[1]) * an_image, base)
    image_s = medians[1] / sizes[1] + sample_s / usable_cores()
    return Looked(
        images=look.images,
        seconds=look.images * image_s + look.finish(),
        memory_mib=network + look.memory_mib,
        disk_mib=look.disk_mib,
    )


def _step(
    task: Any, batches: list[Any], seconds: float, sample_s: float, image_pixels: int
) -> Step:
    """What batches of the sizes in ``_BATCHES`` tell of a step."""
    from core.runtime import jt
    from core.training.loop import train_step

    task.model.train()
    jt.sync_all()
    base = resident_mib()
    medians, peaks = [], []
    for batch in batches:

        def step(batch: Any = batch) -> None:
            train_step(task, batch, 0, _RATE)

        step()
        medians.append(_median_s(step, seconds / 2 / len(_BATCHES)))
        peaks.append(resident_mib("VmHWM"))
    (small, large), (first, second) = _BATCHES, medians
    # What does not grow with the batch; bounded, for short measurements scatter.
    fixed = min(max(first - small * (second - first) / (large - small), 0.0), first / 2)
    memory = max(peaks[1] - peaks[0], 0.0) / (large - small)
    return Step(
        fixed_s=fixed,
        image_s=(second - fixed) / large,
        fixed_mib=max(peaks[1] - large * memory, base),
        image_mib=memory,
        sample_s=sample_s,
        image_pixels=image_pixels,
        on_gpu=bool(jt.flags.use_cuda),
    )


def _image_pixels(sample: Sequence[np.ndarray]) -> int:
    """Pixels of the views (3, H, W) of a sample; other arrays, such as points, are no pixels."""
    views = [x for x in sample if x.dtype.kind == "f" and x.ndim == 3 and x.shape[0] == 3]
    return sum(view.shape[1] * view.shape[2] for view in views)


def _median_s(work: Callable[[], None], seconds: float) -> float:
    times: list[float] = []
    begin = time.monotonic()
    while not times or time.monotonic() - begin < seconds:
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return statistics.median(times)


def _photo() -> np.ndarray:
    """A uint8 RGB picture (375, 500, 3) with objects."""
    rgb, _ = render(KINDS[0], *_PHOTO_HW, np.random.RandomState(0))
    return rgb

"""What the three training stages share: their plan, checks before anything is loaded, and the
loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import config as core_config
from core import distributed, log
from core.checkpoints import files as checkpoint
from core.data.loader import Dataset, Loader
from core.errors import UserError
from core.files import sha256_of
from core.pipeline.folders import CONFIG, LOG
from core.training import loop
from core.training.options import TrainOptions
from tools.data.check import MIN_SIDE
from uss.config import Config

MIN_CROP, MAX_CROP = MIN_SIDE, 4096  # pixels


def make_plan(
    config: Config,
    stage: str,
    folder: Path,
    sections: Sequence[str],
    facts: dict[str, Any],
    options: TrainOptions,
) -> loop.Plan:
    """Plan of the training stage whose settings are the section ``stage`` of ``config``.

    Args:
        folder: of its checkpoints, log and configuration.
        sections: further fields of ``config`` that decide the result.
        facts: what else decides it (images, weights it starts from); a run is only continued where
            all of these are the same.
    """
    whole = core_config.to_dict(config)
    section = getattr(config, stage)
    decisive = ("arch", "seed", stage, *sections)
    return loop.Plan(
        stage=stage,
        folder=folder,
        log_file=folder / LOG,
        config_file=folder / CONFIG,
        config=whole,
        settings={**{name: whole[name] for name in decisive}, **facts},
        epochs=section.epochs,
        base_lr=section.base_lr,
        final_lr=section.final_lr,
        seed=config.seed,
        options=options,
    )


def check(config: Config, stage: str, images: int) -> None:
    """Stop at once where the settings of ``stage`` cannot work with so many images and processes.

    Raises:
        UserError: names the setting to change.
    """
    section, world = getattr(config, stage), distributed.world_size()
    if section.epochs < 1:
        raise UserError(f"{stage}.epochs must be at least 1, is {section.epochs}")
    if section.batch_size < 1 or section.batch_size % world:
        raise UserError(
            f"{stage}.batch_size is {section.batch_size} over all {world} processes: it must be a "
            f"positive multiple of {world}; use --set {stage}.batch_size=..."
        )
    core_config.require_positive(
        {
            "num_classes": config.num_classes,
            **{f"heads.{name}": value for name, value in vars(config.heads).items()},
            "assignment.temperature": config.assignment.temperature,
            "assignment.epsilon": config.assignment.epsilon,
            f"{stage}.base_lr": section.base_lr,
        }
    )
    if config.workers < 0:
        raise UserError(f"--workers must be 0 or more, is {config.workers}")
    if images < section.batch_size:
        raise UserError(
            f"{stage}: {images} training images do not fill one batch of {section.batch_size}; "
            f"add images or use --set {stage}.batch_size={max(images // world * world, world)}"
        )
    queue = getattr(section, "queue_length", 0)
    if queue and queue < section.batch_size:
        raise UserError(
            f"{stage}.queue_length is {queue}, shorter than one batch of {section.batch_size}; use "
            f"--set {stage}.queue_length=0 for none, or at least the batch size"
        )


def check_crops(stage: str, sizes: Sequence[int]) -> None:
    """Stop at once where crops of these sides (pixels) do not suit the networks.

    A crop may be larger than the images: it is cut to a fraction of the image and resized, as in
    the reference.

    Raises:
        UserError: names the size.
    """
    for size in sizes:
        if not MIN_CROP <= size <= MAX_CROP:
            raise UserError(
                f"{stage}: crops of {size} pixels: expected {MIN_CROP} (one cell of the deepest "
                f"features) to {MAX_CROP}"
            )


def make_loader(config: Config, stage: str, dataset: Dataset) -> Loader:
    """This process's share of the batches of ``stage``."""
    return Loader(
        dataset,
        getattr(config, stage).batch_size,
        config.seed,
        config.workers,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )


def source_fact(path: Path, run_folder: Path, stage: str, epochs: int) -> dict[str, str]:
    """Checksum of the weights that a stage starts from, as a fact for :func:`make_plan`.

    Warns where ``path`` is this run's own product of ``stage`` and that has not reached ``epochs``.
    """
    if path.is_relative_to(run_folder):
        payload = checkpoint.load_latest(path.parent)
        done = payload.get("epoch") if payload else None
        if isinstance(done, int) and done < epochs:
            log.warn(stage, f"{path} has only {done} of {epochs} epochs; going on from it")
    return {"starts_from_sha256": sha256_of(path)}


def trainable(model: Any) -> dict[str, Any]:
    """Name -> Var of everything that gradients change: all but running statistics."""
    return {name: var for name, var in model.named_parameters() if ".running_" not in f".{name}"}

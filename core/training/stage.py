"""What all training stages share: checks before anything is loaded, the plan, the loader, the run.

A stage calls :func:`check`, says in a :class:`Training` what is its own, and :func:`train` does the
rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core import config as core_config
from core import distributed, log
from core.checkpoints import files as checkpoint
from core.data.crops import MIN_SIDE
from core.data.loader import Dataset, Loader
from core.data.workers import MOST_WORKERS
from core.errors import UserError
from core.files import sha256_of, sha256_of_json
from core.pipeline import origin
from core.pipeline.folders import CONFIG, LOG
from core.pipeline.stage import Stage
from core.training import loop
from core.training.options import TrainOptions
from core.training.schedules import Schedule

MIN_CROP, MAX_CROP = MIN_SIDE, 4096  # pixels


@dataclass(frozen=True)
class Training:
    """What a stage adds to :func:`train`, which calls each function once, in this order, and only
    where there is something left to train.
    """

    images: int
    """Images to train on."""
    rate: Schedule
    """Learning rate of each iteration, of :mod:`core.training.schedules`."""
    dataset: Callable[[], Dataset]
    """Makes the data set of the images."""
    task: Callable[[], loop.Task]
    """Makes the network, with the weights that it starts from, its optimisers and the task."""
    sections: Sequence[str] = ()
    """Fields of the configuration that decide the result, beside the stage's own and the seed."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the result, such as the weights that it starts from. A run is continued
    only where all of it is the same."""
    earlier_facts: Mapping[str, Any] = field(default_factory=dict)
    """Values of facts as earlier versions recorded them; a run that has them is continued too."""
    sources: Callable[[], Sequence[origin.Source]] = tuple
    """Gives what it starts from, with the chain of each."""
    supervision: str = origin.UNKNOWN
    """What people's knowledge it learns from beside that, of :mod:`core.pipeline.origin`."""
    learnt_from: str = ""
    """Its images in words, of :func:`core.pipeline.origin.images_of`."""


def train(
    stage: Stage, config: Any, folder: Path, options: TrainOptions, training: Training
) -> None:
    """Train what ``training`` describes into ``folder``, from where an earlier run stopped.

    Args:
        stage: its ``section`` of ``config`` has ``epochs`` and ``batch_size``.
        config: also has ``seed`` and ``workers``.
        folder: of checkpoints, log and configuration.

    Raises:
        UserError: a run of other settings in the folder, or what a function of ``training`` or the
            loop raises.
    """
    plan = make_plan(stage, config, folder, options, training)
    previous = loop.previous_run(plan)
    if loop.finished(plan, previous):
        return
    dataset = training.dataset()
    task = training.task()
    chain = origin.continued(_origin(stage, plan, training), previous)
    plan = replace(plan, origin=chain)
    loop.fit(plan, task, make_loader(stage, config, dataset), previous)


def make_plan(
    stage: Stage, config: Any, folder: Path, options: TrainOptions, training: Training
) -> loop.Plan:
    """The plan of :func:`train`."""
    whole, lasting = core_config.to_dict(config), core_config.recorded(config)
    decisive = ("seed", stage.section, *training.sections)
    facts = {"images": training.images, **training.facts}
    return loop.Plan(
        stage=stage.section,
        command=stage.command,
        folder=folder,
        log_file=folder / LOG,
        config_file=folder / CONFIG,
        config=whole,
        settings={**{name: lasting[name] for name in decisive if name in lasting}, **facts},
        earlier_settings=training.earlier_facts,
        epochs=getattr(config, stage.section).epochs,
        rate=training.rate,
        seed=config.seed,
        options=options,
    )


def _origin(stage: Stage, plan: loop.Plan, training: Training) -> origin.Chain:
    link = origin.Link(
        stage.command,
        training.supervision,
        sha256_of_json(plan.settings),
        plan.seed,
        training.learnt_from,
    )
    return origin.made_from(link, training.sources())


def check(stage: Stage, config: Any, images: int) -> None:
    """Stop at once where the settings of ``stage`` cannot work with so many images and processes.

    Raises:
        UserError: names the setting to change.
    """
    name, world = stage.section, distributed.world_size()
    section = getattr(config, name)
    if section.epochs < 1:
        raise UserError(f"{name}.epochs must be at least 1, is {section.epochs}")
    if section.batch_size < 1 or section.batch_size % world:
        raise UserError(
            f"{name}.batch_size is {section.batch_size} over all {world} processes: it must be a "
            f"positive multiple of {world}; use --set {name}.batch_size=..."
        )
    core_config.require_positive({f"{name}.base_lr": section.base_lr})
    if config.workers < 0:
        raise UserError(f"--workers must be 0 or more, is {config.workers}")
    if config.workers > MOST_WORKERS:
        raise UserError(f"--workers must be at most {MOST_WORKERS}, is {config.workers}")
    if images < section.batch_size:
        raise UserError(
            f"{name}: {images} training images do not fill one batch of {section.batch_size}; "
            f"add images or use --set {name}.batch_size={max(images // world * world, world)}"
        )


def check_crops(stage: Stage, sizes: Sequence[int]) -> None:
    """Stop at once where crops of these sides (pixels) do not suit the networks.

    A crop may be larger than the images: it is cut to a fraction of the image and resized, as in
    the reference.

    Raises:
        UserError: names the size.
    """
    for size in sizes:
        if not MIN_CROP <= size <= MAX_CROP:
            raise UserError(
                f"{stage.section}: crops of {size} pixels: expected {MIN_CROP} (one cell of the "
                f"deepest features) to {MAX_CROP}"
            )


def make_loader(stage: Stage, config: Any, dataset: Dataset) -> Loader:
    """This process's share of the batches of ``stage``."""
    return Loader(
        dataset,
        getattr(config, stage.section).batch_size,
        config.seed,
        config.workers,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )


def source_fact(stage: Stage, path: Path, run_folder: Path, epochs: int) -> dict[str, str]:
    """Checksum of the weights that a stage starts from, as a fact of a :class:`Training`.

    Warns where ``path`` is this run's own product of an earlier stage that has not reached
    ``epochs``.
    """
    if path.is_relative_to(run_folder):
        payload = checkpoint.load_latest(path.parent)
        done = payload.get("epoch") if payload else None
        if isinstance(done, int) and done < epochs:
            log.warn(stage.command, f"{path} has only {done} of {epochs} epochs; going on from it")
    return {"starts_from_sha256": sha256_of(path)}


def trainable(model: Any) -> dict[str, Any]:
    """Name -> Var of everything that gradients change: all but running statistics."""
    return {name: var for name, var in model.named_parameters() if ".running_" not in f".{name}"}

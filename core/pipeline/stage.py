"""What a pipeline is: its stages in order, its configuration, its folders and its hooks.

A pipeline states this once, in its ``pipeline.py``. The command line, ``watch``, ``report``, the
doctor and the figure of the method read it from there; none of them knows a stage by name.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.pipeline.folders import PROJECT_ROOT, RunFolder


class Kind(enum.Enum):
    """How a stage works, which says what it leaves and how it is watched."""

    TRAINING = "training"
    """Trains a network; leaves checkpoints, a log and its configuration."""
    PER_IMAGE = "per image"
    """Makes a file of each image; any number of processes share the images."""
    WHOLE = "whole"
    """One computation over all images; leaves its settings last."""


@dataclass(frozen=True)
class Flag:
    """A flag of the command line that only some stages take.

    A flag stands either for a setting (``setting``, dotted) or for an argument of the stage's
    ``run`` (``argument``).
    """

    names: tuple[str, ...]
    """Spellings, the preferred one first."""
    help: str
    setting: str | None = None
    argument: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``argparse.ArgumentParser.add_argument``: type, choices, default."""


@dataclass(frozen=True)
class Cost:
    """What a stage does with each image, for the doctor's estimate of its time."""

    network: str
    """Section of the training stage whose network looks at the image."""
    pixels: Callable[[Any], float]
    """Pixels of the network's input, of a configuration."""
    splits: tuple[str, ...]
    """Splits that the stage goes through."""
    masks: Callable[[Any], bool] = lambda config: False
    """Whether the stage makes the masks of each image, of a configuration."""
    masks_of: tuple[str, ...] | None = None
    """Splits whose masks no earlier stage has made; None: all of ``splits``."""
    measured: bool = False
    """Whether the stage is measured by itself, by the function ``look`` of its module (see
    :mod:`core.pipeline.rehearsal`), and not as a part of the training step of ``network``."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline."""

    command: str
    """Its only name: on the command line, in the log, in the table of times."""
    help: str
    """What it does, in a few words."""
    module: str
    """Module whose ``run(config, data, run, ...)`` is the stage; it returns None or the exit
    code."""
    kind: Kind
    section: str
    """Field of the configuration that holds its settings; its checkpoints record this name."""
    folder: Callable[..., Path] | None = None
    """(run folder, name) -> folder that it leaves, for each name in ``of``; (run folder) -> folder
    where ``of`` is empty. None: it leaves none that is watched."""
    step: str = ""
    """Its number in the method, such as "2.1"; "" for what is no step of it."""
    title: str = ""
    """Its name for people, such as "pixel attention" (default: the command)."""
    of: tuple[str, ...] = ()
    """What it is run for one by one, each with a folder of its own: trunks or splits."""
    per_trunk: bool = False
    """Whether ``of`` names trunks."""
    flags: tuple[Flag, ...] = ()
    script: str = ""
    """Scripts of the project that run it, for the figure of the method."""
    product: str = ""
    """What it gives, in words, for the figure of the method."""
    cost: Cost | None = None
    """None for training stages, which are measured, and where nothing can be said."""
    is_script: bool = False
    """A script of its own (test.py) and no command; its folders lie in a result folder."""

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.title or self.command

    def call(self, config: Any, data: Path, run: Any, **arguments: Any) -> int:
        """Run the stage; returns the exit code."""
        return importlib.import_module(self.module).run(config, data, run, **arguments) or 0

    def traces(self, run: Any) -> Iterator[Trace]:
        """The folders that the stage leaves in a run folder, whether they exist or not."""
        if self.folder is None:
            return
        if not self.of:
            yield Trace(self, self.command, self.folder(run), None)
        for name in self.of:
            yield Trace(self, f"{self.command} {name}", self.folder(run, name), name)


@dataclass(frozen=True)
class Trace:
    """A folder that a stage leaves."""

    stage: Stage
    title: str
    """Command, and trunk or split."""
    folder: Path
    of: str | None
    """The trunk or the split; None where the stage has one folder only."""


@dataclass(frozen=True)
class SegmenterAccess:
    """How tools reach the network of a pipeline that predicts label maps."""

    checkpoint: Callable[[Any], Path]
    """Run folder -> its checkpoint; raises a UserError where there is none."""
    load: str
    """``module:function`` of a checkpoint's path that gives (network in eval mode, facts)."""
    facts: str
    """``module:function`` of a checkpoint's path that gives facts (``num_classes``, ``name``)
    without building the network."""


@dataclass(frozen=True)
class Pipeline:
    """A method from images to results. Hooks that need a network are named ``module:function``, so
    that nothing heavy is imported before it is used.
    """

    name: str
    """Package; ``python -m NAME`` is its command line."""
    config: type
    """Dataclass of all settings, made of a dataclass for each stage."""
    presets: tuple[str, ...]
    """Names of the presets, the default one first."""
    preset: Callable[[str, str | None], Any]
    """(name, trunk or None) -> configuration; raises a UserError for unknown names."""
    run_folder: Callable[..., Any]
    """Path -> run folder, a :class:`core.pipeline.folders.RunFolder`."""
    default_data: Path
    stages: tuple[Stage, ...]
    """In the order of the method."""
    flags: tuple[Flag, ...] = ()
    """Flags of every stage, beside --preset, --set, --data, --run and --workers."""
    trunks: tuple[str, ...] = ()
    """Trunks to choose from by --arch; () where the preset alone decides."""
    predicts_clusters: bool = True
    """Whether label maps hold cluster ids, which a match turns into classes; False where they hold
    class ids already, as in weak supervision."""
    completed: Callable[[Any, frozenset[str]], Any] = lambda config, given: config
    """(configuration, dotted names of settings that flags gave) -> configuration in which settings
    that follow from those are set too."""
    recipe: Callable[[str], Sequence[tuple[Stage, Any]]] = lambda preset: ()
    """Preset -> the stages that its scripts run, each with its configuration."""
    beside: Callable[[str], Sequence[tuple[Stage, Any]]] = lambda preset: ()
    """The same of stages that no script runs and that the estimate shows by themselves."""
    segmenter: SegmenterAccess | None = None
    """The network that predicts label maps; None where the pipeline trains none."""
    maps: Mapping[str, str] = field(default_factory=dict)
    """Maps of an image that a network of the pipeline gives, such as attention: name ->
    ``module:function`` of (run folder, function from a checkpoint's path to settings as nested
    dict, trunk or None) -> function of a uint8 RGB image (H, W, 3) that returns float32 (h, w).
    The report draws them, and ``visualize``."""
    report_extras: str = ""
    """``module:function`` of what the report says about the labels, see ``tools.report.extras``."""
    published_counts: Callable[[Any], Mapping[str, int] | None] = lambda config: None
    """Configuration -> images by split as its data set was published, None where that is open."""
    commands_after_split: Callable[..., list[str]] | None = None
    """(preset, data, run, clusters, training images, whether there is a test split) -> the lines of
    a shell that train on a data set that ``data split`` has made; None: it makes none."""
    demo_data: str = ""
    """``module:function`` of (folder, seed=) that generates the data set of ``data demo``."""
    without_masks: str = ""
    """Command that a user gives where the validation split has no masks."""
    without_test: str = ""
    """Command that a user gives where there is no test split."""

    @property
    def commands(self) -> list[str]:
        """The stages' commands, in order."""
        return [stage.command for stage in self.stages if not stage.is_script]

    @property
    def scripts(self) -> list[Stage]:
        """The stages that are scripts of their own."""
        return [stage for stage in self.stages if stage.is_script]

    def stage(self, command: str) -> Stage:
        """The stage of a command.

        Raises:
            UserError: there is none.
        """
        for stage in self.stages:
            if stage.command == command and not stage.is_script:
                return stage
        raise UserError(
            f"unknown command {command!r}; python -m {self.name} --help lists the commands"
        )

    def traces(self, run: Any) -> Iterator[Trace]:
        """The folders of all stages in a run folder, in the order of the work: stages that follow
        each other for every trunk are listed trunk by trunk.
        """
        for (_, per_trunk), group in groupby(self.stages, lambda each: (each.of, each.per_trunk)):
            traces = [list(stage.traces(run)) for stage in group if not stage.is_script]
            if per_trunk:
                yield from (trace for of_trunk in zip(*traces) for trace in of_trunk)
            else:
                yield from (trace for of_stage in traces for trace in of_stage)


def pipeline_of(run: RunFolder, default: Pipeline) -> Pipeline:
    """The pipeline that a run folder states; ``default`` where it states none.

    Raises:
        UserError: the folder states a pipeline that this project does not have.
    """
    name = run.stated_pipeline()
    if name is None or name == default.name:
        return default
    if not name.isidentifier() or not (PROJECT_ROOT / name / "pipeline.py").is_file():
        raise UserError(f"{run.root} was made by the pipeline {name[:40]!r}, which is not here")
    return importlib.import_module(f"{name}.pipeline").PIPELINE


def hook(reference: str) -> Any:
    """The object that ``module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)

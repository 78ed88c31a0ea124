"""The configuration that a tool works with: a preset's, or that of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import config as core_config
from core.files import read_json
from core.pipeline.folders import CONFIG
from core.pipeline.stage import Pipeline


def preset_or_trained(pipeline: Pipeline, name: str | None, checkpoint: Path | None) -> Any:
    """The configuration of preset ``name``, else the one beside a checkpoint with which it was
    trained, else the default preset's.

    Raises:
        UserError: an unknown preset, or a broken configuration beside the checkpoint.
    """
    if name is not None:
        return pipeline.preset(name, None)
    beside = checkpoint.parent / CONFIG if checkpoint else None
    if beside is None or not beside.is_file():
        return pipeline.preset(pipeline.presets[0], None)
    values = read_json(beside, "the settings of a run")
    return core_config.from_dict(pipeline.config, values, str(beside))

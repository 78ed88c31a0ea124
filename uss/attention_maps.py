"""Attention maps of images, from the pixel-attention network of a run, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import json_or_empty
from core.pipeline.folders import CHECKPOINT
from tools.report.run_files import setting
from uss.config import ARCHS, PseudoLabels
from uss.networks import load_pixel_attention, mean_attention
from uss.paths import RunFolder, pixel_attention_input


class AttentionMaps:
    """Mean attention of images, by the network that the pseudo labels were made with.

    Args:
        run: the run folder; a checkpoint that the user named for it comes first.
        settings_of: path of the checkpoint -> configuration as a nested dict, {} where not known.
        arch: trunk; None: that of the pseudo labels, else the one that there is.

    Raises:
        UserError: the run has no checkpoint of step 2.1.
    """

    def __init__(
        self,
        run: RunFolder,
        settings_of: Callable[[Path], Mapping[str, Any]],
        arch: str | None = None,
    ) -> None:
        arch = _trunk_of(run) if arch is None else arch
        self.checkpoint = pixel_attention_input(run, arch)
        self._model = load_pixel_attention(self.checkpoint, arch)
        settings = settings_of(self.checkpoint)
        self._resize = setting(settings, "pseudo_labels.resize", PseudoLabels.resize)
        self._square = setting(settings, "pseudo_labels.square", PseudoLabels.square)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w) float32 in 0..1: attention of a uint8 RGB image (H, W, 3), averaged over
        channels, on the network's own grid.
        """
        return mean_attention(self._model, rgb, self._resize, self._square)


def _trunk_of(run: RunFolder) -> str:
    asked = json_or_empty(run.threshold).get("arch")
    archs = [asked] if asked in ARCHS else list(ARCHS)
    for arch in archs:
        if (run.pixel_attention(arch) / CHECKPOINT).is_file():
            return arch
    place = run.pixel_attention(archs[0]) / CHECKPOINT
    raise UserError(
        f"--attention needs the pixel-attention network, but {place} is missing; make it with "
        "train_2.sh or leave --attention out"
    )

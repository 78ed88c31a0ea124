"""Attention maps for the gallery, from the pixel-attention network of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import json_or_empty
from core.pipeline.folders import CHECKPOINT
from tools.report.run_files import setting
from uss.config import ARCHS, PseudoLabels
from uss.networks import load_pixel_attention, mean_attention
from uss.paths import RunFolder


class AttentionMaps:
    """Mean attention of images, by the network that the pseudo labels were made with.

    Raises:
        UserError: the run has no checkpoint of step 2.1.
    """

    def __init__(self, run: RunFolder, settings: dict[str, Any]) -> None:
        asked = json_or_empty(run.threshold).get("arch")
        archs = [asked] if asked in ARCHS else list(ARCHS)
        found = [arch for arch in archs if (run.pixel_attention(arch) / CHECKPOINT).is_file()]
        if not found:
            place = run.pixel_attention(archs[0]) / CHECKPOINT
            raise UserError(
                f"--attention needs the pixel-attention network, but {place} is missing; make it "
                "with train_2.sh or leave --attention out"
            )
        self.checkpoint: Path = run.pixel_attention(found[0]) / CHECKPOINT
        self._model = load_pixel_attention(self.checkpoint, found[0])
        self._resize = setting(settings, "pseudo_labels.resize", PseudoLabels.resize)
        self._square = setting(settings, "pseudo_labels.square", PseudoLabels.square)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w) float32 in 0..1: attention of a uint8 RGB image (H, W, 3), averaged over
        channels, on the network's own grid.
        """
        return mean_attention(self._model, rgb, self._resize, self._square)

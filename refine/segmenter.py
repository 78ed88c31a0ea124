"""The fine-tuned segmenter at work: an image's logits, and its label map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from core.config import recorded
from core.data.crops import network_input
from core.files import sha256_of
from refine.settings import Predict as Settings

_NEIGHBOURS = (slice(None, -1), slice(1, None))


class Segmenter:
    """A fine-tuned network and how images are brought to it.

    Args:
        model: (1, 3, h, w) float32 -> logits (1, C + 1, h', w') float32, in eval mode.
        facts: what the pipeline knows of the network, kept as ``facts``.
        settings: size of the input and cap of the output.
    """

    def __init__(self, model: Any, facts: Any, settings: Settings) -> None:
        self._model, self.facts = model, facts
        self._settings = settings

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Label map (H, W) int32 of a uint8 RGB image (H, W, 3)."""
        return self.label(self.logits(rgb), rgb.shape[:2])

    def logits(self, rgb: np.ndarray) -> np.ndarray:
        """Logits (C + 1, h, w) float32 of a uint8 RGB image (H, W, 3), at the network's output
        size.
        """
        from core.runtime import jt

        image = network_input(rgb, self._settings.resize, self._settings.square)
        with jt.no_grad():
            return self._model(jt.array(image)).numpy()[0]

    def label(self, logits: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
        """Label map (H, W) int32 of an image of this size from its logits, as it is handed in
        without refinement.
        """
        return label_of_logits(logits, size_hw, self._settings.max_res)

    def fine_label(
        self, logits: np.ndarray, size_hw: tuple[int, ...], label: np.ndarray
    ) -> np.ndarray:
        """The same without the cap on large images, for what looks at single pixels; ``label`` is
        what :meth:`label` gave.
        """
        capped = _shrink(size_hw, self._settings.max_res) < 1
        return label_of_logits(logits, size_hw) if capped else label


def decisive_settings(path: Path, settings: Settings) -> dict[str, Any]:
    """Everything that decides a prediction, the checkpoint by its SHA-256; JSON serialisable."""
    return {"checkpoint_sha256": sha256_of(path), "predict": recorded(settings)}


def label_of_logits(logits: np.ndarray, size_hw: tuple[int, ...], max_res: int = 0) -> np.ndarray:
    """Argmax (H, W) int32 of logits (C + 1, h, w) resized bilinearly to the image.

    Where the image has more than ``max_res`` squared pixels (0 = never), the argmax is taken at a
    size of the same aspect with that many pixels, and enlarged by nearest neighbour.
    """
    height, width = size_hw
    shrink = _shrink(size_hw, max_res)
    small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    # Class by class: the full-size logits of hundreds of classes would not fit into memory.
    best = cv2.resize(logits[0], small, interpolation=cv2.INTER_LINEAR)
    label = np.zeros(best.shape, dtype=np.int32)
    for index in _contenders(logits):
        values = cv2.resize(logits[index], small, interpolation=cv2.INTER_LINEAR)
        higher = values > best
        best[higher], label[higher] = values[higher], index
    if label.shape == size_hw:
        return label
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)


def _shrink(size_hw: tuple[int, ...], max_res: int) -> float:
    """Factor of the sides, at most 1, that leaves an image ``max_res`` squared pixels."""
    return min(1.0, max_res / (size_hw[0] * size_hw[1]) ** 0.5) if max_res > 0 else 1.0


def _contenders(logits: np.ndarray) -> list[int]:
    """The labels but 0 that can win somewhere when logits (C + 1, h, w) are resized bilinearly.

    Between four neighbouring places a value lies within theirs, so a class whose highest of the
    four is below another's lowest cannot win there. Of hundreds of classes this leaves few.
    """
    slack = 1e-5 * np.abs(logits).max()  # more than what resizing rounds
    if not np.isfinite(slack):
        return list(range(1, len(logits)))
    lowest = highest = logits
    for axis in (1, 2):
        if logits.shape[axis] > 1:
            first, second = ((slice(None),) * axis + (part,) for part in _NEIGHBOURS)
            lowest = np.minimum(lowest[first], lowest[second])
            highest = np.maximum(highest[first], highest[second])
    can_win = (highest >= lowest.max(axis=0) - slack).any(axis=(1, 2))
    return [int(index) for index in np.flatnonzero(can_win) if index]

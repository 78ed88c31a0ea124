"""What a pipeline tells the report about the labels that its segmenter learnt from.

A pipeline names a function ``(run folder, settings) -> Extras`` as its ``report_extras``; the
settings are the nested dict of the segmenter's configuration, {} where that is not known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold that labels were made with; the curve is empty where it was set by hand."""

    threshold: float
    miou: float | None
    chosen_by: str
    curve: list[tuple[float, float]]
    """(threshold, mIoU) of the values that were tried."""
    of: str = "labels"
    """What was made with it, in words."""
    meaning: str = ""
    """A sentence: what becomes of pixels below the threshold."""


@dataclass(frozen=True)
class Extras:
    """Everything that a pipeline adds to the page."""

    threshold: ThresholdChoice | None = None
    ground_truth: str = ""
    """What ground-truth masks decided in this run, in words, for results without a record; "" where
    they decided nothing."""

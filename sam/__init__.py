"""Segment Anything: ``SamPredictor``, ``SamAutomaticMaskGenerator`` and ``sam_model_registry`` as
in the official API.

The three names are resolved on first use, so that the numpy-only modules of this package
(``masks``, ``mask_store``, ``superpixels``, ``transforms``, ``upscale``, ``onnx_weights``) import
without starting Jittor.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "SamPredictor": "sam.predictor",
    "SamAutomaticMaskGenerator": "sam.mask_generator",
    "sam_model_registry": "sam.build",
}
__all__ = ["SamAutomaticMaskGenerator", "SamPredictor", "sam_model_registry"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

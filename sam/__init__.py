"""Segment Anything: ``SamPredictor``, ``SamAutomaticMaskGenerator``, ``sam_model_registry`` and the
``build_sam`` functions as in the official API.

The names are resolved on first use, so that the numpy-only modules of this package (``masks``,
``mask_store``, ``superpixels``, ``transforms``, ``upscale``, ``onnx_weights``) import without
starting Jittor.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "SamPredictor": "sam.predictor",
    "SamAutomaticMaskGenerator": "sam.mask_generator",
    "sam_model_registry": "sam.build",
    "build_sam": "sam.build",
    "build_sam_vit_h": "sam.build",
    "build_sam_vit_l": "sam.build",
    "build_sam_vit_b": "sam.build",
    "build_sam_vit_t": "sam.build",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

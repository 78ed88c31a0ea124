"""Segment Anything in Jittor. ``SamPredictor``, ``SamAutomaticMaskGenerator``,
``sam_model_registry`` and the ``build_sam`` functions have the names and arguments of the official
code. Knows no data set, no class and no pipeline.

predictor         masks for prompts (points, a box, a mask) on one image
mask_generator    all masks of an image, from a grid of points
build             the models by name, and the network as a whole
image_encoder     the ViT image encoder (ViT-B, -L, -H)
tiny_vit          MobileSAM's small image encoder
prompt_encoder    prompts to embeddings
mask_decoder      embeddings to masks and predicted IoU
transformer       the decoder's two-way transformer
decoder_ops       the decoder's costly operations, fused
common            layers that these networks share
transforms        resizes images and prompts to the encoder's size
resize_logits     enlarges the decoder's masks to the image's size
masks             boxes, duplicates, crops and small regions of masks (numpy only)
batch_size        how many prompts fit into the free memory
weights           finds the SAM weights, or fetches the small ones
published         the official files: compared with their checksums, fetched on request
onnx_weights      MobileSAM's exported files as a state dict
kernels/          C++ sources of ``decoder_ops``
"""

from __future__ import annotations

from typing import Any

# Resolved on first use, so that the modules that need numpy alone (``masks``, ``transforms``,
# ``resize_logits``, ``onnx_weights``, ``weights``) are imported without starting Jittor.
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

"""The models of both sides, with the same weights.

TinyViT has the trained weights that ``python -m uss weights`` fetches. ViT-B has those of the
official checkpoint where ``weights/`` holds it (input ``vit_b``), else a seeded random image
encoder before the trained prompt encoder and mask decoder of the TinyViT SAM, whose design is the
same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases import Inputs
from benchmarks.inputs import random_weight

_ENCODER = "image_encoder."
# The classifier of TinyViT's pretraining is not part of a SAM.
_UNUSED = (f"{_ENCODER}norm_head.", f"{_ENCODER}head.")


def our_tiny_vit(inputs: Inputs) -> Any:
    """Our TinyViT SAM."""
    from sam import sam_model_registry

    return sam_model_registry["vit_t"](checkpoint=inputs["weights"])


def torch_tiny_vit(inputs: Inputs) -> Any:
    """The official TinyViT SAM (MobileSAM)."""
    import torch

    from benchmarks import shims
    from core.checkpoints.torch_reader import state_dict_of

    shims.install()
    from mobile_sam import sam_model_registry

    sam = sam_model_registry["vit_t"]()
    state = {k: torch.from_numpy(v) for k, v in state_dict_of(inputs["weights"]).items()}
    missing, unexpected = sam.load_state_dict(state, strict=False)
    missing = [k for k in missing if not k.startswith(_UNUSED) and "num_batches_tracked" not in k]
    if missing or unexpected:
        raise RuntimeError(f"the weights do not fit: {missing} missing, {unexpected} unexpected")
    # TinyViT expands its attention biases when it enters eval mode: again, for those just loaded.
    return sam.eval()


def our_vit_b(inputs: Inputs) -> Any:
    """Our SAM with ViT-B."""
    from sam import sam_model_registry

    sam = sam_model_registry["vit_b"]()
    shapes = {key: tuple(var.shape) for key, var in sam.state_dict().items()}
    weights = vit_b_weights(inputs, shapes)
    for key, var in sam.state_dict().items():
        var.assign(weights[key])
    return sam


def torch_vit_b(inputs: Inputs) -> Any:
    """The official SAM with ViT-B."""
    import torch

    from benchmarks import shims

    shims.install()
    from segment_anything import sam_model_registry

    sam = sam_model_registry["vit_b"]()
    shapes = {key: tuple(tensor.shape) for key, tensor in sam.state_dict().items()}
    weights = vit_b_weights(inputs, shapes)
    sam.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return sam.eval()


def vit_b_weights(inputs: Inputs, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """float32 values of the named weights of a ViT-B SAM (see the module)."""
    from core.checkpoints.torch_reader import state_dict_of

    if inputs["vit_b"]:
        return state_dict_of(inputs["vit_b"])
    trained = state_dict_of(inputs["weights"])
    return {
        key: random_weight(key, shape) if key.startswith(_ENCODER) else trained[key]
        for key, shape in shapes.items()
    }

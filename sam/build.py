"""The Segment Anything models by name, and the whole model: image encoder, prompt encoder and mask
decoder, with the normalising and padding of images before them and the resizing of masks behind.

``sam_model_registry[name](checkpoint=None)`` and the ``build_sam`` functions are as in the official
API. Without a checkpoint nothing is read and the weights are those of initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.runtime import jt, nn
from sam.image_encoder import ImageEncoderViT
from sam.mask_decoder import MaskDecoder
from sam.prompt_encoder import PromptEncoder
from sam.resize_logits import MaskUpscaler
from sam.tiny_vit import TinyViT
from sam.transforms import to_numpy

Var = Any

_PATCH = 16
_EMBED_DIM = 256
# MobileSAM's checkpoint keeps the classifier of TinyViT's pretraining.
_UNUSED_KEYS = ("image_encoder.norm_head.", "image_encoder.head.")

_VIT = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "vit_l": {
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "global_attn_indexes": (5, 11, 17, 23),
    },
    "vit_h": {
        "embed_dim": 1280,
        "depth": 32,
        "num_heads": 16,
        "global_attn_indexes": (7, 15, 23, 31),
    },
}


# ImageNet's mean and standard deviation per channel, in 0..255; not part of the weights.
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder; mostly used through ``SamPredictor``.

    Args:
        image_encoder: (B, 3, s, s) -> (B, 256, s / 16, s / 16) with s its ``img_size``.
        prompt_encoder: see :class:`sam.prompt_encoder.PromptEncoder`.
        mask_decoder: see :class:`sam.mask_decoder.MaskDecoder`.
        pixel_mean, pixel_std: of each channel of the input, RGB in 0..255.
    """

    mask_threshold = 0.0
    image_format = "RGB"

    def __init__(
        self,
        image_encoder: Any,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        pixel_mean: Sequence[float] = _PIXEL_MEAN,
        pixel_std: Sequence[float] = _PIXEL_STD,
    ) -> None:
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

    @property
    def device(self) -> str:
        """Where the model computes, "cpu" or "cuda": the device of the process."""
        return "cuda" if jt.flags.use_cuda else "cpu"

    def to(self, device: Any) -> Sam:
        """Check that ``device`` ("cpu", "cuda", "cuda:0", ...) is the one of this process. Jittor
        has one device for all, so nothing is moved.

        Raises:
            UserError: it is another one.
        """
        if str(device).partition(":")[0] != self.device:
            raise UserError(
                f"expected device {self.device!r}, on which Jittor runs here, got {device}; "
                "set USS_DEVICE=cpu or USS_DEVICE=cuda before the start"
            )
        return self

    def execute(
        self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool
    ) -> list[dict[str, Var]]:
        """Masks for images that come with their prompts (the official ``forward``).

        The images are encoded one by one, so that memory does not grow with their number.

        Args:
            batched_input: for each image ``image``, (3, h, w) RGB in 0..255 whose longer side is
                ``img_size``; ``original_size``, (H, W) before that resize; and, each if there is
                such a prompt, in pixels of the resized image: ``point_coords`` (B, N, 2) with
                ``point_labels`` (B, N), ``boxes`` (B, 4), ``mask_inputs`` (B, 1, l, l). Vars or
                arrays.
            multimask_output: three masks (for ambiguous prompts) or one.

        Returns:
            For each image ``masks``, bool (B, C, H, W); ``iou_predictions`` (B, C);
            ``low_res_logits`` (B, C, l, l).
        """
        with jt.no_grad():
            return [self._answer(record, multimask_output) for record in batched_input]

    def _answer(self, record: Mapping[str, Any], multimask_output: bool) -> dict[str, Var]:
        image = to_numpy(record["image"])
        points = None
        if "point_coords" in record:
            points = (record["point_coords"], record["point_labels"])
        prior = record.get("mask_inputs")
        sparse, dense = self.prompt_encoder(
            points=points,
            boxes=record.get("boxes"),
            masks=None if prior is None else jt.array(to_numpy(prior).astype(np.float32)),
        )
        low_res, iou = self.mask_decoder(
            image_embeddings=self.image_encoder(self.preprocess(image[None])),
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        height, width = image.shape[-2:]
        logits = self.postprocess_masks(low_res, (height, width), tuple(record["original_size"]))
        masks = logits.numpy() > np.float32(self.mask_threshold)
        return {"masks": jt.array(masks), "iou_predictions": iou, "low_res_logits": low_res}

    def preprocess(self, x: Var) -> Var:
        """Normalise the colours, then pad with zeros on the right and at the bottom.

        Args:
            x: (..., 3, h, w) RGB in 0..255, the longer side resized to ``img_size``.

        Returns:
            float32 (..., 3, img_size, img_size).
        """
        pixels = to_numpy(x).astype(np.float32)
        mean, std = (
            np.array(v, np.float32).reshape(3, 1, 1) for v in (self.pixel_mean, self.pixel_std)
        )
        side = self.image_encoder.img_size
        padded = np.zeros((*pixels.shape[:-2], side, side), np.float32)
        padded[..., : pixels.shape[-2], : pixels.shape[-1]] = (pixels - mean) / std
        return jt.array(padded)

    def postprocess_masks(
        self, masks: Var, input_size: tuple[int, int], original_size: tuple[int, int]
    ) -> Var:
        """Enlarge to the padded input, cut the padding off, resize to the image (bilinear).

        Args:
            masks: (B, M, 4h, 4w).
            input_size: (h, w) of the resized image before padding.
            original_size: (H, W) of the image.

        Returns:
            (B, M, H, W).
        """
        low_res = to_numpy(masks)
        side = self.image_encoder.img_size
        upscale = MaskUpscaler(low_res.shape[-1], side, input_size, original_size)
        full = np.stack([upscale(mask) for mask in low_res.reshape(-1, *low_res.shape[-2:])])
        return jt.array(full.reshape(*low_res.shape[:2], *original_size))


def sam_around(image_encoder: Any, checkpoint: str | Path | None = None) -> Sam:
    """A SAM around ``image_encoder``, in eval mode, with the weights of ``checkpoint`` if given.

    Raises:
        UserError: the file is not a checkpoint, or not of this architecture.
    """
    side = image_encoder.img_size // _PATCH
    prompt_encoder = PromptEncoder(
        _EMBED_DIM, (side, side), (image_encoder.img_size, image_encoder.img_size)
    )
    sam = Sam(image_encoder, prompt_encoder, MaskDecoder(_EMBED_DIM))
    sam.eval()
    if checkpoint is not None:
        from core.checkpoints.files import load_state
        from core.checkpoints.torch_reader import state_dict_of

        path = Path(checkpoint)
        load_state(sam, state_dict_of(path), str(path), unexpected_ok=_UNUSED_KEYS)
    return sam


def build_sam_vit_b(checkpoint: str | Path | None = None) -> Sam:
    """SAM with ViT-B (94 M parameters)."""
    return sam_around(ImageEncoderViT(**_VIT["vit_b"]), checkpoint)  # type: ignore[arg-type]


def build_sam_vit_l(checkpoint: str | Path | None = None) -> Sam:
    """SAM with ViT-L (312 M parameters)."""
    return sam_around(ImageEncoderViT(**_VIT["vit_l"]), checkpoint)  # type: ignore[arg-type]


def build_sam_vit_h(checkpoint: str | Path | None = None) -> Sam:
    """SAM with ViT-H (641 M parameters), the official default."""
    return sam_around(ImageEncoderViT(**_VIT["vit_h"]), checkpoint)  # type: ignore[arg-type]


def build_sam_vit_t(checkpoint: str | Path | None = None) -> Sam:
    """MobileSAM: SAM with TinyViT (10 M parameters)."""
    return sam_around(TinyViT(), checkpoint)


build_sam = build_sam_vit_h

sam_model_registry = {
    "default": build_sam,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "vit_t": build_sam_vit_t,
}

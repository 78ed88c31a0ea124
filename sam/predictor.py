"""Masks for given prompts on one image: the official ``SamPredictor`` with numpy arrays outside and
Jittor inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.runtime import jt
from sam.transforms import ResizeLongestSide
from sam.upscale import MaskUpscaler


class SamPredictor:
    """Encodes an image once and then answers any number of prompts on it.

    Args:
        sam_model: a ``sam.build.Sam`` with its weights loaded.
    """

    def __init__(self, sam_model: Any) -> None:
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_encoder.img_size)
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the current image."""
        self.is_image_set = False
        self.features: Any = None
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None
        self._upscaler: MaskUpscaler | None = None

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode an image for the calls that follow.

        Args:
            image: uint8 (H, W, 3).
            image_format: channel order of ``image``, "RGB" or "BGR".

        Raises:
            ValueError: another dtype, shape or channel order.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format must be 'RGB' or 'BGR', not {image_format!r}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"expected a uint8 image (H, W, 3), got {image.dtype} of shape {image.shape}"
            )
        if image_format != self.model.image_format:
            image = image[..., ::-1]
        resized = self.transform.apply_image(np.ascontiguousarray(image))
        h, w = image.shape[:2]
        self.set_transformed_image(resized.transpose(2, 0, 1)[None], (h, w))

    def set_transformed_image(
        self, transformed_image: np.ndarray, original_size_hw: tuple[int, int]
    ) -> None:
        """Encode an image that ``self.transform`` has resized already (the official
        ``set_torch_image``).

        Args:
            transformed_image: (1, 3, h, w) RGB values in 0-255, its longest side the encoder's
                size.
            original_size_hw: size of the image that masks are to have.

        Raises:
            ValueError: another shape.
        """
        side = self.transform.target_length
        shape = transformed_image.shape
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ValueError(f"expected (1, 3, h, w) with longest side {side}, got {shape}")
        self.reset_image()
        self.original_size = (int(original_size_hw[0]), int(original_size_hw[1]))
        self.input_size = (int(shape[2]), int(shape[3]))
        with jt.no_grad():
            self.features = self.model.image_encoder(self.model.preprocess(transformed_image))
            self.features.sync()
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt in coordinates of the original image.

        Args:
            point_coords: (N, 2) as (x, y) in pixels.
            point_labels: (N,), 1 foreground, 0 background.
            box: (4,) xyxy in pixels.
            mask_input: (1, l, l) low-resolution logits, usually from an earlier call.
            multimask_output: three masks (for ambiguous prompts) or one.
            return_logits: float logits instead of bool masks.

        Returns:
            masks (C, H, W) bool or float32, predicted IoU (C,), low-resolution logits (C, l, l).

        Raises:
            RuntimeError: no image is set. ValueError: points without labels.
        """
        size = self._image_size()
        coords = labels = boxes = None
        if point_coords is not None:
            if point_labels is None:
                raise ValueError("point_labels must be given with point_coords")
            coords = self.transform.apply_coords(point_coords, size)[None]
            labels = np.asarray(point_labels)[None]
        if box is not None:
            boxes = self.transform.apply_boxes(np.asarray(box), size)
        prior = None if mask_input is None else np.asarray(mask_input)[None]
        masks, iou, low_res = self.predict_batch(
            coords, labels, boxes, prior, multimask_output, return_logits
        )
        return masks[0], iou[0], low_res[0]

    def predict_batch(
        self,
        point_coords: np.ndarray | None,
        point_labels: np.ndarray | None,
        boxes: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for B prompts in coordinates that ``self.transform`` has resized (the official
        ``predict_torch``).

        Args:
            point_coords: (B, N, 2). point_labels: (B, N). boxes: (B, 4). mask_input: (B, 1, l, l).

        Returns:
            masks (B, C, H, W), predicted IoU (B, C), low-resolution logits (B, C, l, l).
        """
        low_res, iou = self.decode(point_coords, point_labels, boxes, mask_input, multimask_output)
        upscale = self.upscaler()
        logits = np.stack([np.stack([upscale(mask) for mask in masks]) for masks in low_res])
        masks = logits if return_logits else logits > np.float32(self.model.mask_threshold)
        return masks, iou, low_res

    def decode(
        self,
        point_coords: np.ndarray | None,
        point_labels: np.ndarray | None,
        boxes: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like :meth:`predict_batch` without the enlargement: (B, C, l, l) logits and (B, C)
        predicted IoU.
        """
        self._image_size()
        with jt.no_grad():
            points = None
            if point_coords is not None:
                labels = np.asarray(point_labels, np.int32)
                points = (np.asarray(point_coords, np.float32), labels)
            sparse, dense = self.model.prompt_encoder(
                points=points,
                boxes=None if boxes is None else np.asarray(boxes, np.float32),
                masks=None if mask_input is None else jt.array(mask_input.astype(np.float32)),
            )
            low_res, iou = self.model.mask_decoder(
                image_embeddings=self.features,
                image_pe=self.model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
            )
            return low_res.numpy(), iou.numpy()

    def upscaler(self) -> MaskUpscaler:
        """Function from low-resolution logits (l, l) to logits of the current image's size (H,
        W).
        """
        size = self._image_size()
        if self._upscaler is None:
            assert self.input_size is not None
            low = 4 * self.features.shape[-1]
            self._upscaler = MaskUpscaler(low, self.transform.target_length, self.input_size, size)
        return self._upscaler

    def get_image_embedding(self) -> np.ndarray:
        """float32 (1, 256, h, w) embedding of the current image."""
        self._image_size()
        return self.features.numpy()

    def _image_size(self) -> tuple[int, int]:
        if not self.is_image_set or self.original_size is None:
            raise RuntimeError("no image is set: call set_image(...) first")
        return self.original_size

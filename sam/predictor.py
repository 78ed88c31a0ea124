"""Masks for given prompts on one image: the official ``SamPredictor`` with numpy arrays outside and
Jittor inside.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from core.runtime import jt
from sam.resize_logits import MaskUpscaler
from sam.transforms import ResizeLongestSide, to_numpy

Var = Any


class SamPredictor:
    """Encodes an image once and then answers any number of prompts on it.

    Args:
        sam_model: a ``sam.build.Sam`` with its weights loaded.

    Example (without a checkpoint the weights are random; the shapes are the same)::

        >>> import numpy as np
        >>> from sam import SamPredictor, sam_model_registry
        >>> predictor = SamPredictor(sam_model_registry["vit_t"](checkpoint=None))
        >>> predictor.set_image(np.full((120, 160, 3), 128, np.uint8))
        >>> point_xy, foreground = np.array([[80, 60]]), np.array([1])
        >>> masks, iou, low_res = predictor.predict(point_xy, foreground)
        >>> masks.shape, masks.dtype.name, iou.shape, low_res.shape
        ((3, 120, 160), 'bool', (3,), (3, 256, 256))

        A box is answered best by a single mask:

        >>> masks, iou, _ = predictor.predict(
        ...     box=np.array([40, 30, 120, 90]), multimask_output=False
        ... )
        >>> masks.shape, iou.shape
        ((1, 120, 160), (1,))
    """

    def __init__(self, sam_model: Any) -> None:
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_encoder.img_size)
        #: Seconds spent in the image encoder so far.
        self.encoding_s = 0.0
        self.reset_image()

    @property
    def device(self) -> str:
        """Where the model computes, "cpu" or "cuda"."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the current image."""
        self.is_image_set = False
        self.features: Any = None
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None
        self._upscaler: MaskUpscaler | None = None
        self._encoded: np.ndarray | None = None

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode an image for the calls that follow. Nothing is done where the same image is set.

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
        if self._encoded is not None and np.array_equal(self._encoded, image):
            return
        resized = self.transform.apply_image(np.ascontiguousarray(image))
        h, w = image.shape[:2]
        self.set_torch_image(resized.transpose(2, 0, 1)[None], (h, w))
        self._encoded = image.copy()

    def set_torch_image(
        self, transformed_image: Var | np.ndarray, original_image_size: tuple[int, int]
    ) -> None:
        """Encode an image that ``self.transform`` has resized already.

        Args:
            transformed_image: (1, 3, h, w) RGB values in 0-255, its longest side the encoder's
                size.
            original_image_size: (H, W) of the image that masks are to have.

        Raises:
            ValueError: another shape.
        """
        side = self.transform.target_length
        shape = transformed_image.shape
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ValueError(f"expected (1, 3, h, w) with longest side {side}, got {shape}")
        self.reset_image()
        self.original_size = (int(original_image_size[0]), int(original_image_size[1]))
        self.input_size = (int(shape[2]), int(shape[3]))
        started = time.perf_counter()
        with jt.no_grad():
            self.features = self.model.image_encoder(self.model.preprocess(transformed_image))
            self.features.sync()
        self.encoding_s += time.perf_counter() - started
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
            multimask_output: answer with three masks, for prompts that may mean a part or the
                whole, such as a single point; else with one, for boxes and several points.
            return_logits: return float logits instead of bool masks.

        Returns:
            masks (C, H, W) bool or float32, predicted IoU (C,), low-resolution logits (C, l, l).

        Raises:
            RuntimeError: no image is set. ValueError: points without labels.
        """
        size = self._image_size()
        coords = labels = boxes = prior = None
        if point_coords is not None:
            if point_labels is None:
                raise ValueError("point_labels must be given with point_coords")
            coords = self.transform.apply_coords(point_coords, size)[None]
            labels = np.asarray(point_labels)[None]
        if box is not None:
            boxes = self.transform.apply_boxes(np.asarray(box), size)
        if mask_input is not None:
            prior = np.asarray(mask_input)[None]
        low_res, iou, _ = self.decode(coords, labels, boxes, prior, multimask_output)
        return self._enlarged(low_res, return_logits)[0], iou[0], low_res[0]

    def predict_torch(
        self,
        point_coords: Var | np.ndarray | None,
        point_labels: Var | np.ndarray | None,
        boxes: Var | np.ndarray | None = None,
        mask_input: Var | np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Var, Var, Var]:
        """Masks for B prompts in coordinates that ``self.transform`` has resized; Vars where the
        official method has tensors.

        Args:
            point_coords: (B, N, 2). point_labels: (B, N). boxes: (B, 4). mask_input: (B, 1, l, l).

        Returns:
            masks (B, C, H, W), predicted IoU (B, C), low-resolution logits (B, C, l, l).
        """
        low_res, iou, _ = self.decode(
            point_coords, point_labels, boxes, mask_input, multimask_output
        )
        masks = self._enlarged(low_res, return_logits)
        return jt.array(masks), jt.array(iou), jt.array(low_res)

    def decode(
        self,
        point_coords: Var | np.ndarray | None,
        point_labels: Var | np.ndarray | None,
        boxes: Var | np.ndarray | None = None,
        mask_input: Var | np.ndarray | None = None,
        multimask_output: bool = True,
        iou_limit: float = -math.inf,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Like :meth:`predict_torch`, but the masks stay at low resolution, and only the prompts
        that have a mask of predicted IoU above ``iou_limit`` get masks.

        Returns:
            Low-resolution logits (K, C, l, l) of those K prompts, predicted IoU (B, C) of all, the
            indices (K,) of those prompts.
        """
        self._image_size()
        coords, labels, corners, prior = (
            None if values is None else to_numpy(values)
            for values in (point_coords, point_labels, boxes, mask_input)
        )
        with jt.no_grad():
            sparse, dense = self.model.prompt_encoder(
                points=None if coords is None else (coords, labels),
                boxes=corners,
                masks=None if prior is None else jt.array(prior.astype(np.float32)),
            )
            return self.model.mask_decoder.predict_above(
                self.features,
                self.model.prompt_encoder.get_dense_pe(),
                sparse,
                dense,
                multimask_output,
                iou_limit,
            )

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

    def get_image_embedding(self) -> Var:
        """float32 (1, 256, h, w) embedding of the current image."""
        self._image_size()
        return self.features

    def _enlarged(self, low_res: np.ndarray, return_logits: bool) -> np.ndarray:
        """Logits (B, C, l, l) -> bool masks or logits (B, C, H, W)."""
        upscale = self.upscaler()
        logits = np.stack([np.stack([upscale(mask) for mask in masks]) for masks in low_res])
        return logits if return_logits else logits > np.float32(self.model.mask_threshold)

    def _image_size(self) -> tuple[int, int]:
        if not self.is_image_set or self.original_size is None:
            raise RuntimeError("no image is set: call set_image(...) first")
        return self.original_size

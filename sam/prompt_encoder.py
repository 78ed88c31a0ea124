"""SAM's prompt encoder: points, boxes and low-resolution masks to embeddings.

Points and boxes are a few numbers, embedded with numpy: no kernel has to be compiled for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.runtime import jt, nn
from sam.common import Activation, Conv2d, layer_norm_2d, to_planes
from sam.transforms import to_numpy

Var = Any

# Rows of `point_embeddings`; the labels of points are the first two, -1 marks padding.
_BACKGROUND, _FOREGROUND, _TOP_LEFT, _BOTTOM_RIGHT = range(4)
_PADDING = -1


class PromptEncoder(nn.Module):
    """Sparse embeddings for points and boxes, a dense one for masks.

    Args:
        embed_dim: channels of all embeddings.
        image_embedding_size: (h, w) of the image embedding.
        input_image_size: (H, W) of the encoder's padded input, in whose pixels prompts are given.
        mask_in_chans: hidden channels of the mask downscaling.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        image_embedding_size: tuple[int, int] = (64, 64),
        input_image_size: tuple[int, int] = (1024, 1024),
        mask_in_chans: int = 16,
    ) -> None:
        self.embed_dim = embed_dim
        self.image_embedding_size = image_embedding_size
        self.input_image_size = input_image_size
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, embed_dim) for _ in range(4)])
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            Conv2d(1, mask_in_chans // 4, 2, stride=2),
            layer_norm_2d(mask_in_chans // 4),
            Activation(),
            Conv2d(mask_in_chans // 4, mask_in_chans, 2, stride=2),
            layer_norm_2d(mask_in_chans),
            Activation(),
            Conv2d(mask_in_chans, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def get_dense_pe(self) -> Var:
        """Position embedding of the image places, (1, embed_dim, h, w)."""
        return self.pe_layer(self.image_embedding_size)

    def execute(
        self,
        points: tuple[Var | np.ndarray, Var | np.ndarray] | None,
        boxes: Var | np.ndarray | None,
        masks: Var | None,
    ) -> tuple[Var, Var]:
        """Embed the prompts of B objects.

        Args:
            points: coordinates (B, N, 2), (x, y) in input pixels, and labels (B, N): 1 foreground,
                0 background, -1 padding. Without boxes one padding point is added, as in training.
            boxes: (B, 4) xyxy in input pixels.
            masks: (B, 1, 4h, 4w) logits.

        Returns:
            Sparse (B, tokens, embed_dim) and dense (B, embed_dim, h, w); without masks the dense
            embedding is the same for all prompts and comes once, as (1, embed_dim, h, w).
        """
        sparse = []
        if points is not None:
            coords, labels = to_numpy(points[0]), to_numpy(points[1])
            sparse.append(self._embed_points(coords, labels, pad=boxes is None))
        if boxes is not None:
            sparse.append(self._embed_boxes(to_numpy(boxes)))
        if not sparse:
            batch = 1 if masks is None else masks.shape[0]
            sparse.append(np.zeros((batch, 0, self.embed_dim), np.float32))
        with jt.no_grad():
            return jt.array(np.concatenate(sparse, axis=1)), self._embed_masks(masks)

    def _embed_points(self, coords: np.ndarray, labels: np.ndarray, pad: bool) -> np.ndarray:
        centres = coords.astype(np.float32) + np.float32(0.5)
        if pad:
            centres = np.pad(centres, ((0, 0), (0, 1), (0, 0)))
            labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=_PADDING)
        embedding = self.pe_layer.at(centres, self.input_image_size)
        embedding[labels == _PADDING] = self.not_a_point_embed.weight.numpy()
        for kind in (_BACKGROUND, _FOREGROUND):
            embedding[labels == kind] += self.point_embeddings[kind].weight.numpy()
        return embedding

    def _embed_boxes(self, boxes: np.ndarray) -> np.ndarray:
        corners = boxes.astype(np.float32).reshape(-1, 2, 2) + np.float32(0.5)
        kinds = [self.point_embeddings[kind].weight.numpy() for kind in (_TOP_LEFT, _BOTTOM_RIGHT)]
        return self.pe_layer.at(corners, self.input_image_size) + np.concatenate(kinds)

    def _embed_masks(self, masks: Var | None) -> Var:
        if masks is None:
            row = self.no_mask_embed.weight.numpy().reshape(1, -1, 1, 1)
            return jt.array(np.tile(row, (1, 1, *self.image_embedding_size)))
        down = self.mask_downscaling
        x = down[1](down[0](masks, channels_first=True), "gelu")
        x = down[4](down[3](x), "gelu")
        return to_planes(down[6](x))


class PositionEmbeddingRandom(nn.Module):
    """Sine and cosine of random projections of the position; the matrix is part of the weights."""

    def __init__(self, num_pos_feats: int) -> None:
        self.positional_encoding_gaussian_matrix = jt.randn((2, num_pos_feats)).stop_grad()
        # Matrix and size of the last grid, and the grid: every prompt asks for it.
        self._grid: tuple[np.ndarray, tuple[int, int], np.ndarray] | None = None

    def execute(self, size_hw: tuple[int, int]) -> Var:
        """Embedding of the centres of an (h, w) grid: (1, 2 num_pos_feats, h, w)."""
        matrix = self.positional_encoding_gaussian_matrix.numpy()
        known = self._grid
        if known is None or known[1] != size_hw or not np.array_equal(known[0], matrix):
            h, w = size_hw
            y, x = np.meshgrid(np.arange(h) + 0.5, np.arange(w) + 0.5, indexing="ij")
            grid = self.at(np.stack([x, y], axis=-1).astype(np.float32), size_hw)
            known = (matrix, size_hw, np.ascontiguousarray(grid.transpose(2, 0, 1)[None]))
            self._grid = known
        return jt.array(known[2])

    def at(self, coords: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        """(..., 2) points (x, y) in pixels of an image of ``size_hw`` -> (..., 2 num_pos_feats)."""
        h, w = size_hw
        unit = coords / np.array([w, h], np.float32)
        matrix = self.positional_encoding_gaussian_matrix.numpy()
        angle = np.float32(2 * np.pi) * ((2 * unit - 1) @ matrix)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

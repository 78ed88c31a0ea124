"""SAM's prompt encoder: points, boxes and low-resolution masks to embeddings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from core.runtime import jt, nn
from sam.common import Activation, Conv2d, layer_norm_2d, to_numpy

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
        with jt.no_grad():
            return self.pe_layer(self.image_embedding_size)

    def execute(
        self, points: tuple[Var, Var] | None, boxes: Var | None, masks: Var | None
    ) -> tuple[Var, Var]:
        """Embed the prompts of B objects.

        Args:
            points: coordinates (B, N, 2), (x, y) in input pixels, and labels (B, N): 1 foreground, 0 background,
                -1 padding. Without boxes one padding point is added, as in training.
            boxes: (B, 4) xyxy in input pixels.
            masks: (B, 1, 4h, 4w) logits.

        Returns:
            Sparse (B, tokens, embed_dim) and dense (B, embed_dim, h, w); without masks the dense embedding is the
            same for all and comes as (1, embed_dim, h, w), which the decoder broadcasts without copies.
        """
        with jt.no_grad():
            batch = _batch_size(points, boxes, masks)
            sparse = []
            if points is not None:
                sparse.append(self._embed_points(*points, pad=boxes is None))
            if boxes is not None:
                sparse.append(self._embed_boxes(boxes))
            embedding = jt.concat(sparse, dim=1) if sparse else jt.zeros((batch, 0, self.embed_dim))
            return embedding, self._embed_masks(masks)

    def _embed_points(self, coords: Var, labels: Var, pad: bool) -> Var:
        coords, labels = to_numpy(coords).astype(np.float32) + 0.5, to_numpy(labels)
        if pad:
            batch = coords.shape[0]
            coords = np.concatenate([coords, np.zeros((batch, 1, 2), np.float32)], axis=1)
            labels = np.concatenate([labels, np.full((batch, 1), _PADDING, labels.dtype)], axis=1)
        kind = jt.array(labels[..., None].astype(np.int32))
        where = self.pe_layer.at(jt.array(coords), self.input_image_size)
        embedding = jt.where(kind == _PADDING, jt.zeros_like(where), where)
        for value, table in (
            (_PADDING, self.not_a_point_embed),
            (_BACKGROUND, self.point_embeddings[_BACKGROUND]),
            (_FOREGROUND, self.point_embeddings[_FOREGROUND]),
        ):
            embedding = embedding + (kind == value).float32() * table.weight
        return embedding

    def _embed_boxes(self, boxes: Var) -> Var:
        corners = to_numpy(boxes).astype(np.float32).reshape(-1, 2, 2) + 0.5
        kinds = [
            self.point_embeddings[_TOP_LEFT].weight,
            self.point_embeddings[_BOTTOM_RIGHT].weight,
        ]
        return self.pe_layer.at(jt.array(corners), self.input_image_size) + jt.concat(kinds, dim=0)

    def _embed_masks(self, masks: Var | None) -> Var:
        if masks is None:
            h, w = self.image_embedding_size
            return self.no_mask_embed.weight.reshape(1, -1, 1, 1).broadcast(
                [1, self.embed_dim, h, w]
            )
        down = self.mask_downscaling
        x = down[1](down[0](masks, channels_first=True), "gelu")
        x = down[4](down[3](x), "gelu")
        return down[6](x).permute(0, 3, 1, 2)


class PositionEmbeddingRandom(nn.Module):
    """Sine and cosine of random projections of the position; the matrix is part of the weights."""

    def __init__(self, num_pos_feats: int) -> None:
        self.positional_encoding_gaussian_matrix = jt.randn((2, num_pos_feats)).stop_grad()

    def execute(self, size_hw: tuple[int, int]) -> Var:
        """Embedding of the centres of an (h, w) grid: (1, 2 num_pos_feats, h, w)."""
        h, w = size_hw
        y, x = np.meshgrid(np.arange(h) + 0.5, np.arange(w) + 0.5, indexing="ij")
        grid = np.stack([x, y], axis=-1).astype(np.float32)
        return self.at(jt.array(grid), size_hw).permute(2, 0, 1).unsqueeze(0)

    def at(self, coords: Var, size_hw: tuple[int, int]) -> Var:
        """(..., 2) points (x, y) in pixels of an image of ``size_hw`` -> (..., 2 num_pos_feats)."""
        h, w = size_hw
        unit = coords / jt.array(np.array([w, h], np.float32))
        angle = (2 * math.pi) * jt.matmul(2 * unit - 1, self.positional_encoding_gaussian_matrix)
        return jt.concat([jt.sin(angle), jt.cos(angle)], dim=-1)


def _batch_size(points: tuple[Var, Var] | None, boxes: Var | None, masks: Var | None) -> int:
    if points is not None:
        return points[0].shape[0]
    if boxes is not None:
        return boxes.shape[0]
    return 1 if masks is None else masks.shape[0]

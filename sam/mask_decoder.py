"""SAM's mask decoder: image and prompt embeddings to low-resolution logits and predicted IoU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from core.runtime import jt, nn
from sam import decoder_ops
from sam.batch_size import PROMPTS_AT_ONCE
from sam.common import MLP, Activation, layer_norm_2d
from sam.transformer import TwoWayTransformer

Var = Any


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling by 4, one hyper-network per mask token.

    Args:
        transformer_dim: channels of image embedding and tokens.
        transformer: the two-way transformer.
        num_multimask_outputs: how many masks answer an ambiguous prompt. One more token answers
            unambiguous ones, with a single mask.
        iou_head_depth, iou_head_hidden_dim: the MLP that predicts each mask's IoU.
    """

    def __init__(
        self,
        transformer_dim: int = 256,
        transformer: TwoWayTransformer | None = None,
        num_multimask_outputs: int = 3,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        dim, last = transformer_dim, transformer_dim // 8
        self.transformer = transformer or TwoWayTransformer(embedding_dim=dim)
        self.num_mask_tokens = num_multimask_outputs + 1
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose(dim, dim // 4, 2, stride=2),
            layer_norm_2d(dim // 4),
            Activation(),
            nn.ConvTranspose(dim // 4, last, 2, stride=2),
            Activation(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            [MLP(dim, dim, last, 3) for _ in range(self.num_mask_tokens)]
        )
        self.iou_prediction_head = MLP(
            dim, iou_head_hidden_dim, self.num_mask_tokens, iou_head_depth
        )

    def execute(
        self,
        image_embeddings: Var,
        image_pe: Var,
        sparse_prompt_embeddings: Var,
        dense_prompt_embeddings: Var,
        multimask_output: bool,
    ) -> tuple[Var, Var]:
        """Predict the masks of B prompts on one image.

        Args:
            image_embeddings: (1, C, h, w).
            image_pe: (1, C, h, w).
            sparse_prompt_embeddings: (B, tokens, C).
            dense_prompt_embeddings: (B or 1, C, h, w).
            multimask_output: three masks for an ambiguous prompt instead of one.

        Returns:
            Mask logits (B, 3 or 1, 4h, 4w) and predicted IoU (B, 3 or 1).
        """
        masks, iou, _ = self.predict_above(
            image_embeddings,
            image_pe,
            sparse_prompt_embeddings,
            dense_prompt_embeddings,
            multimask_output,
        )
        return jt.array(masks), jt.array(iou)

    def predict_above(
        self,
        image_embeddings: Var,
        image_pe: Var,
        sparse_prompt_embeddings: Var,
        dense_prompt_embeddings: Var,
        multimask_output: bool,
        iou_limit: float = -math.inf,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Like :meth:`execute`, for the prompts that have a mask of predicted IoU above a limit.

        The predicted IoU is known before the masks are made. So the upscaling, which is 40 % of the
        decoder's time, is left out for the other prompts.

        Args:
            iou_limit: a prompt gets masks only where one of them has a predicted IoU above this.

        Returns:
            Mask logits (K, 3 or 1, 4h, 4w) of K of the B prompts, predicted IoU (B, 3 or 1) of all,
            both float32, and the int64 indices (K,) of the prompts that have masks, ascending.
        """
        wanted = list(range(1, self.num_mask_tokens)) if multimask_output else [0]
        tokens = self._tokens(sparse_prompt_embeddings)
        shared = dense_prompt_embeddings.shape[0] == 1
        masks, iou, chosen = [], [], []
        with jt.no_grad():
            for start in range(0, len(tokens), PROMPTS_AT_ONCE):
                some = slice(start, start + PROMPTS_AT_ONCE)
                dense = dense_prompt_embeddings if shared else dense_prompt_embeddings[some]
                image = image_embeddings + dense
                rows, places = self.transformer(image, image_pe, jt.array(tokens[some]))
                hyper, scores = self._heads(rows, wanted)
                above = np.flatnonzero((scores > np.float32(iou_limit)).any(axis=1))
                iou.append(scores)
                chosen.append(start + above)
                if len(above):
                    size_hw = (image.shape[2], image.shape[3])
                    masks.append(self._masks(places, size_hw, hyper, above))
        if not masks:
            height, width = image_embeddings.shape[2:]
            masks.append(np.zeros((0, len(wanted), 4 * height, 4 * width), np.float32))
        return np.concatenate(masks), np.concatenate(iou), np.concatenate(chosen)

    def _tokens(self, sparse: Var) -> np.ndarray:
        """(B, 1 + masks + prompt tokens, C): the decoder's own tokens, then the prompt's."""
        own = np.concatenate([self.iou_token.weight.numpy(), self.mask_tokens.weight.numpy()])
        repeated = np.broadcast_to(own, (sparse.shape[0], *own.shape))
        return np.concatenate([repeated, sparse.numpy()], axis=1)

    def _heads(self, tokens: Var, wanted: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, T, C) -> the vectors of the wanted masks (B, M, C / 8), predicted IoU (B, M).

        The first token predicts the IoU; each other token becomes the vector of its mask. numpy
        takes the tokens apart and puts the results together, so that no kernel has to be compiled.
        """
        rows = tokens.numpy()
        iou = self.iou_prediction_head(jt.array(rows[:, 0])).numpy()[:, wanted]
        heads = self.output_hypernetworks_mlps
        vectors = [heads[i](jt.array(rows[:, 1 + i])).numpy() for i in wanted]
        return np.stack(vectors, axis=1), iou

    def _masks(
        self, places: Var, size_hw: tuple[int, int], hyper: np.ndarray, chosen: np.ndarray
    ) -> np.ndarray:
        """Mask logits (K, M, 4h, 4w) of the chosen prompts from their places (B, h * w, C)."""
        if len(chosen) < len(hyper):
            places, hyper = places[chosen], hyper[chosen]
        first, norm, _, second, _ = list(self.output_upscaling)
        masks = decoder_ops.upscale_masks(
            places.reshape(len(hyper), *size_hw, -1),
            first.weight,
            first.bias,
            norm.weight,
            norm.bias,
            norm.eps,
            second.weight,
            second.bias,
            jt.array(hyper),
        )
        return masks.numpy()

"""SAM's mask decoder: image and prompt embeddings to low-resolution logits and predicted IoU."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.runtime import jt, nn
from sam import decoder_ops
from sam.common import MLP, Activation, layer_norm_2d
from sam.transformer import TwoWayTransformer

Var = Any

# Each prompt has its own copy of the image places (4 MiB): more prompts than this go in turns.
_PROMPTS_AT_ONCE = 64


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling by 4, one hyper-network per mask token.

    Args:
        transformer_dim: channels of image embedding and tokens.
        transformer: the two-way transformer.
        num_multimask_outputs: masks of an ambiguous prompt; one more token answers unambiguous
            prompts.
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
        wanted = list(range(1, self.num_mask_tokens)) if multimask_output else [0]
        batch, parts = sparse_prompt_embeddings.shape[0], []
        tokens = self._tokens(sparse_prompt_embeddings)
        with jt.no_grad():
            for start in range(0, batch, _PROMPTS_AT_ONCE):
                some = slice(start, start + _PROMPTS_AT_ONCE)
                shared = dense_prompt_embeddings.shape[0] == 1
                dense = dense_prompt_embeddings if shared else dense_prompt_embeddings[some]
                part = self._predict(image_embeddings + dense, image_pe, tokens[some], wanted)
                jt.sync(part)
                parts.append(part)
        if len(parts) == 1:
            return parts[0]
        masks, iou = zip(*parts)
        return jt.concat(masks, dim=0), jt.concat(iou, dim=0)

    def _tokens(self, sparse: Var) -> np.ndarray:
        """(B, 1 + masks + prompt tokens, C): the decoder's own tokens, then the prompt's."""
        own = np.concatenate([self.iou_token.weight.numpy(), self.mask_tokens.weight.numpy()])
        repeated = np.broadcast_to(own, (sparse.shape[0], *own.shape))
        return np.concatenate([repeated, sparse.numpy()], axis=1)

    def _predict(
        self, image: Var, image_pe: Var, tokens: np.ndarray, wanted: list[int]
    ) -> tuple[Var, Var]:
        (height, width), batch = image.shape[2:], tokens.shape[0]
        out, places = self.transformer(image, image_pe, jt.array(tokens))

        # The first token predicts the IoU, the others turn into the vectors of their masks. They
        # are taken apart and put together with numpy, for which nothing has to be compiled.
        rows = out.numpy()
        iou = self.iou_prediction_head(jt.array(rows[:, 0])).numpy()[:, wanted]
        heads = self.output_hypernetworks_mlps
        vectors = [heads[i](jt.array(rows[:, 1 + i])).numpy() for i in wanted]
        hyper = jt.array(np.stack(vectors, axis=1))
        first, norm, _, second, _ = list(self.output_upscaling)
        masks = decoder_ops.upscale_masks(
            places.reshape(batch, height, width, -1),
            first.weight,
            first.bias,
            norm.weight,
            norm.bias,
            norm.eps,
            second.weight,
            second.bias,
            hyper,
        )
        return masks, jt.array(iou)

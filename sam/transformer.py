"""The two-way transformer of SAM's mask decoder: tokens and image places attend to each other.

The image places take the time, because after the first layer every prompt has its own copy of 4096
of them. Before it the places are the same for all prompts, which share them (batch 1). No
projection of the places is made for a single prompt (see ``decoder_ops.token_to_image``).
"""

from __future__ import annotations

from typing import Any

from core.nn import inference
from core.runtime import nn
from sam import decoder_ops
from sam.common import LayerNorm, Linear
from sam.image_encoder import MLPBlock

Var = Any


class TwoWayTransformer(nn.Module):
    """``depth`` two-way blocks, then one more attention of the tokens to the image.

    Args:
        depth: number of blocks.
        embedding_dim: channels of tokens and image places.
        num_heads: attention heads.
        mlp_dim: hidden width of the tokens' MLP.
    """

    def __init__(
        self, depth: int = 2, embedding_dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048
    ) -> None:
        self.layers = nn.ModuleList(
            [TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim, i == 0) for i in range(depth)]
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, 2)
        self.norm_final_attn = LayerNorm(embedding_dim)

    def execute(self, image_embedding: Var, image_pe: Var, point_embedding: Var) -> tuple[Var, Var]:
        """Run on the prompts of one image.

        Args:
            image_embedding: (B or 1, C, h, w).
            image_pe: (1, C, h, w).
            point_embedding: (B, T, C) tokens.

        Returns:
            Tokens (B, T, C) and image places (B, h * w, C).
        """
        keys, key_pe = (_places(x) for x in (image_embedding, image_pe))
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries, keys, point_embedding, key_pe)
        looked = self.final_attn_token_to_image.at_image(
            queries + point_embedding, keys, key_pe, queries
        )
        return self.norm_final_attn(looked), keys


class TwoWayAttentionBlock(nn.Module):
    """Tokens to themselves, tokens to image, MLP on the tokens, image to tokens; a norm after each.

    Args:
        skip_first_layer_pe: the first block's self attention has neither positions nor residual.
    """

    def __init__(
        self, embedding_dim: int, num_heads: int, mlp_dim: int, skip_first_layer_pe: bool
    ) -> None:
        self.self_attn = Attention(embedding_dim, num_heads, 1)
        self.norm1 = LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, 2)
        self.norm2 = LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, "relu")
        self.norm3 = LayerNorm(embedding_dim)
        self.norm4 = LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, 2)
        self.skip_first_layer_pe = skip_first_layer_pe

    def execute(self, queries: Var, keys: Var, query_pe: Var, key_pe: Var) -> tuple[Var, Var]:
        """Tokens (B, T, C) and image places (B or 1, N, C) -> the same, places always (B, N, C)."""
        if self.skip_first_layer_pe:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = self.self_attn(q, q, queries, residual=queries)
        queries = self.norm1(queries)
        to_image = self.cross_attn_token_to_image
        queries = self.norm2(to_image.at_image(queries + query_pe, keys, key_pe, queries))
        queries = self.norm3(self.mlp(queries, residual=queries))
        keys = self.cross_attn_image_to_token.from_image(
            keys, key_pe, queries + query_pe, queries, self.norm4
        )
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention with separate projections, narrowed inside by ``downsample_rate``."""

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int) -> None:
        inner = embedding_dim // downsample_rate
        self.num_heads = num_heads
        self.scale = (inner // num_heads) ** -0.5
        self.q_proj = Linear(embedding_dim, inner)
        self.k_proj = Linear(embedding_dim, inner)
        self.v_proj = Linear(embedding_dim, inner)
        self.out_proj = Linear(inner, embedding_dim)

    def execute(self, q: Var, k: Var, v: Var, residual: Var | None = None) -> Var:
        """q (B, Nq, C), k and v (B or 1, Nk, C) -> (B, Nq, C), plus the residual."""
        mixed = inference.attention(
            self.q_proj(q), self.k_proj(k), self.v_proj(v), self.num_heads, self.scale
        )
        return self.out_proj(mixed, residual=residual)

    def at_image(self, q: Var, keys: Var, key_pe: Var, residual: Var) -> Var:
        """Tokens q (B, T, C) look at places (B or 1, N, C): residual + attention, (B, T, C)."""
        if keys.shape[0] == 1:
            # One projection of the places serves all prompts.
            return self(q, keys + key_pe, keys, residual)
        mixed = decoder_ops.token_to_image(
            self.q_proj(q),
            keys,
            key_pe,
            self.num_heads,
            self.k_proj.weight,
            self.v_proj.weight,
            self.v_proj.bias,
        )
        return self.out_proj(mixed, residual=residual)

    def from_image(self, keys: Var, key_pe: Var, k: Var, v: Var, norm: LayerNorm) -> Var:
        """Image places (B or 1, N, C) look at tokens k, v (B, T, C): norm(places + attention), (B,
        N, C).
        """
        return decoder_ops.image_to_token(
            keys,
            key_pe,
            self.k_proj(k),
            self.v_proj(v),
            self.num_heads,
            self.q_proj.weight,
            self.q_proj.bias,
            self.out_proj.weight,
            self.out_proj.bias,
            norm.weight,
            norm.bias,
            norm.eps,
        )


def _places(x: Var) -> Var:
    """(B, C, h, w) -> (B, h * w, C)."""
    return inference.transpose(x.reshape(x.shape[0], x.shape[1], -1))

"""SAM's image encoder: the ViT of ViTDet (Li et al. 2022), whose blocks attend within windows or to
the whole map, with relative positions.
"""

from __future__ import annotations

from typing import Any

from core.nn import inference
from core.runtime import jt, nn
from sam.common import Conv2d, LayerNorm, Linear, Neck

Var = Any

# SAM's encoder normalises with this epsilon, its decoder with PyTorch's default of 1e-5.
_EPS = 1e-6


class ImageEncoderViT(nn.Module):
    """Plain ViT over 16 x 16 patches and a neck to 256 channels.

    Args:
        img_size: side of the square input in pixels.
        embed_dim, depth, num_heads: the ViT's width, blocks and heads.
        global_attn_indexes: blocks that attend to the whole map; the others to windows of
            ``window_size`` tokens.
        out_chans: channels of the embedding.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        window_size: int = 14,
        global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11),
    ) -> None:
        self.img_size = img_size
        side = img_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.pos_embed = jt.zeros((1, side, side, embed_dim))
        self.blocks = nn.ModuleList(
            [
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    side if i in global_attn_indexes else window_size,
                )
                for i in range(depth)
            ]
        )
        self.neck = Neck(embed_dim, out_chans)

    def execute(self, x: Var) -> Var:
        """float32 (B, 3, s, s), normalised -> (B, out_chans, s / 16, s / 16), s = img_size."""
        with jt.no_grad():
            x = self.patch_embed(x) + self.pos_embed
            for block in self.blocks:
                x = block(x)
            x = self.neck(x)
            x.sync()
        return x


class PatchEmbed(nn.Module):
    """Image to channels-last patch embeddings (key ``proj``)."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        self.proj = Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def execute(self, x: Var) -> Var:
        """(B, 3, H, W) -> (B, H / patch, W / patch, embed_dim)."""
        return self.proj(x, channels_first=True)


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and with a residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, side: int) -> None:
        self.norm1 = LayerNorm(dim, _EPS)
        self.attn = Attention(dim, num_heads, side)
        self.norm2 = LayerNorm(dim, _EPS)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio), "gelu")

    def execute(self, x: Var) -> Var:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.attn(self.norm1(x), residual=x)
        return self.mlp(self.norm2(x), residual=x)


class Attention(nn.Module):
    """Multi-head attention in windows of ``side`` tokens with decomposed relative positions.

    The map is padded with zeros to whole windows, after the norm. A padded token therefore has the
    bias of ``qkv`` as query, key and value, and takes part in its window, as in the official code.
    """

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        self.num_heads, self.side = num_heads, side
        head_dim = dim // num_heads
        self.scale = head_dim**-0.5
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.rel_pos_h = jt.zeros((2 * side - 1, head_dim))
        self.rel_pos_w = jt.zeros((2 * side - 1, head_dim))

    def execute(self, x: Var, residual: Var) -> Var:
        """(B, H, W, C) -> residual + attention, (B, H, W, C)."""
        mixed = inference.window_attention(
            self.qkv(x),
            self.qkv.bias,
            self.num_heads,
            self.side,
            self.scale,
            head_major=False,
            rel_h=self.rel_pos_h,
            rel_w=self.rel_pos_w,
        )
        return self.proj(mixed, residual=residual)


class MLPBlock(nn.Module):
    """Two linear layers (keys ``lin1``, ``lin2``) with an activation between them."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        self.lin1 = Linear(dim, hidden)
        self.lin2 = Linear(hidden, dim)
        self.activation = activation

    def execute(self, x: Var, residual: Var) -> Var:
        """(..., dim) -> residual + mlp(x), (..., dim)."""
        return self.lin2(self.lin1(x, self.activation), residual=residual)

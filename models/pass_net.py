"""The PASS networks, one class per stage: pretraining, pixel attention, plain segmentation.

Keys are the reference's, so that its published checkpoints load. Heads end in a batch norm without
affine terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from core.nn.layers import BatchNorm, Conv2d, grid_sample_bilinear, l2_normalise, resize_bilinear
from core.runtime import jt, nn
from models.resnet import ResNet, initialise

Var = Any


class PretrainOutput(NamedTuple):
    """What one pretraining forward gives: V views of B images, d feature channels, P prototypes."""

    embedding: Var
    """(V*B, d) float32, unit rows, view by view in the order of the crops."""
    logits: Var
    """(V*B, P) float32: embedding times prototypes."""
    shallow_embedding: list[Var]
    """One (2*B, d) with unit rows per shallow stage, in the order of ``shallow``: crops 0 and 1."""
    shallow_logits: list[Var]
    """One (2*B, P) per shallow stage; the prototypes get no gradient from these."""
    pixel_z: Var
    """(2*B, d, 7, 7) float32: pixel embedding at the lattice points of crops 0 and 1."""
    pixel_p: Var
    """(2*B, d, 7, 7) float32: what the predictor makes of ``pixel_z``."""


class PretrainNet(ResNet):
    """Trunk, image head, shallow heads, pixel head and prototypes of the pretraining stage.

    Args:
        arch: a key of ``models.resnet.TRUNKS``.
        hidden_mlp: width h inside the heads.
        feat_dim: width d of embeddings.
        prototypes: number P of prototypes.
        shallow: distinct stages out of 1, 2, 3 that get a head of their own, in any order.
    """

    def __init__(
        self,
        arch: str,
        hidden_mlp: int,
        feat_dim: int,
        prototypes: int,
        shallow: Sequence[int] = (3,),
    ) -> None:
        super().__init__(arch)
        if len(set(shallow)) != len(shallow) or not set(shallow) <= {1, 2, 3}:
            raise ValueError(f"shallow must be distinct stages out of 1, 2, 3, got {list(shallow)}")
        self.shallow = tuple(shallow)
        deep = self.channels[3]
        self.projection_head = _projection_head(deep, hidden_mlp, feat_dim)
        self.projection_head_shallow = nn.Module()
        self.projection_head_pixel_shallow = nn.Module()
        for stage in self.shallow:
            width = self.channels[stage - 1]
            pixel, image = _shallow_names(stage)
            setattr(
                self.projection_head_pixel_shallow, pixel, _pixel_head(width, hidden_mlp, width)
            )
            setattr(
                self.projection_head_shallow, image, _projection_head(width, hidden_mlp, feat_dim)
            )
        self.projection_head_pixel = _pixel_head(deep, hidden_mlp, feat_dim)
        self.predictor_head_pixel = nn.Sequential(
            Conv2d(feat_dim, feat_dim, 1, bias=False),
            BatchNorm(feat_dim),
            nn.ReLU(),
            Conv2d(feat_dim, feat_dim, 1),
        )
        self.prototypes = nn.Linear(feat_dim, prototypes, bias=False)
        initialise(self)

    def execute(
        self,
        crops: Sequence[Var | np.ndarray],
        gridq: Var | np.ndarray,
        gridk: Var | np.ndarray,
    ) -> PretrainOutput:
        """Embed all crops; those of one size share a forward and hence batch norm statistics.

        Args:
            crops: V >= 2 arrays (B,3,S,S) float32, normalised; crops 0 and 1 are of one size.
            gridq: (B,7,7,2) float32, lattice points in crop 0, x first, -1..1 from edge to edge.
            gridk: the same points in crop 1.
        """
        groups = _group_by_size(crops)
        if 1 not in groups[0]:
            raise ValueError(
                "the first two crops must be of one size, got "
                f"{crops[0].shape} and {crops[1].shape}"
            )
        pooled = []
        for group in groups:
            maps = self.trunk(_join(crops, group))
            pooled.append(maps[3].mean([2, 3]))
            if group is groups[0]:
                # Crops 0 and 1 lead their group; they alone feed the pixel and shallow branches.
                pair = 2 * crops[0].shape[0]
                assigned = maps if len(group) == 2 else [features[:pair] for features in maps]
        rows = _in_view_order(pooled, groups)
        embedding = l2_normalise(self.projection_head(rows))
        shallow = [self._shallow_embedding(stage, assigned[stage - 1]) for stage in self.shallow]
        frozen = self.prototypes.weight.detach()
        grid = np.concatenate([_array(gridq), _array(gridk)])
        pixel_z = grid_sample_bilinear(self.projection_head_pixel(assigned[3]), grid)
        return PretrainOutput(
            embedding=embedding,
            logits=self.prototypes(embedding),
            shallow_embedding=shallow,
            shallow_logits=[nn.matmul_transpose(rows, frozen) for rows in shallow],
            pixel_z=pixel_z,
            pixel_p=self.predictor_head_pixel(pixel_z),
        )

    def normalise_prototypes(self) -> None:
        """Give each prototype unit length; they go on learning."""
        normalise_rows(self.prototypes)

    def _shallow_embedding(self, stage: int, features: Var) -> Var:
        pixel, image = _shallow_names(stage)
        pooled = getattr(self.projection_head_pixel_shallow, pixel)(features).mean([2, 3])
        return l2_normalise(getattr(self.projection_head_shallow, image)(pooled))


class PixelAttentionNet(ResNet):
    """Trunk with a learnt attention per pixel and channel; only attention and prototypes train.

    F is the trunk's last map, enlarged 4 times, and f the same with each pixel's channels scaled to
    unit length. The attention A is computed from f. Training embeds mean(f * A), clustering uses
    mean(F * A). The trunk is run without gradient, but its batch norms follow ``train()`` and
    ``eval()``.
    """

    def __init__(self, arch: str, hidden_mlp: int, feat_dim: int, prototypes: int) -> None:
        super().__init__(arch)
        deep = self.channels[3]
        self.fbg = PixelAttention(deep)
        self.projection_head = _projection_head(deep, hidden_mlp, feat_dim)
        self.prototypes = nn.Linear(feat_dim, prototypes, bias=False)
        initialise(self)

    def execute(
        self, crops: Sequence[Var | np.ndarray], attention_threshold: float = 0.0
    ) -> tuple[Var, Var]:
        """(embedding (V*B,d) with unit rows, logits (V*B,P)) of V crops (B,3,S,S), view by view.

        Attention below ``attention_threshold`` (a fraction, per pixel and channel) counts as 0.
        """
        groups = _group_by_size(crops)
        pooled = [self.pooled_feature(_join(crops, g), attention_threshold) for g in groups]
        embedding = l2_normalise(self.projection_head(_in_view_order(pooled, groups)))
        return embedding, self.prototypes(embedding)

    def features(self, x: Var) -> tuple[Var, Var]:
        """(F, A) of images (B,3,H,W): both (B,C4,4h,4w) for a last map of h x w; A is in 0..1."""
        with jt.no_grad():
            deep = self.trunk(x)[3]
            enlarged = resize_bilinear(deep, (deep.shape[2] * 4, deep.shape[3] * 4))
        return enlarged, self.fbg(l2_normalise(enlarged))

    def pooled_feature(self, x: Var, attention_threshold: float = 0.0) -> Var:
        """(B,C4): mean over the map of L2-normalised feature times attention: for training."""
        feature, attention = self.features(x)
        return _attended_mean(l2_normalise(feature), attention, attention_threshold)

    def cluster_feature(self, x: Var, attention_threshold: float = 0.0) -> Var:
        """(B,C4): mean over the map of un-normalised feature times attention: for clustering."""
        return _attended_mean(*self.features(x), attention_threshold)

    def attention_map(self, x: Var) -> Var:
        """(B,1,4h,4w): attention averaged over channels."""
        return self.features(x)[1].mean(1, keepdims=True)

    def trainable_parameters(self) -> dict[str, Var]:
        """Key -> parameter that this stage trains: attention and prototypes, no statistics."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if ("fbg" in name or "prototypes" in name) and ".running_" not in name
        }

    def normalise_prototypes(self) -> None:
        """Give each prototype unit length; they go on learning."""
        normalise_rows(self.prototypes)


class PixelAttention(nn.Module):
    """Attention in 0..1 for each pixel and channel, (B,C,h,w), of L2-normalised features of the
    same shape. A learnt offset for each channel shifts it before the sigmoid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = jt.zeros((1, channels, 1, 1))
        self.atten = nn.Sequential(
            Conv2d(channels, channels, 1),
            BatchNorm(channels),
            nn.ReLU(),
            Conv2d(channels, channels, 1),
            BatchNorm(channels),
        )

    def execute(self, x: Var) -> Var:
        return jt.sigmoid(self.atten(x) + self.threshold)


class PlainSegmenter(ResNet):
    """Trunk and one 1x1 convolution: (B,3,H,W) -> logits (B, num_classes+1, H/32, W/32). Index 0
    is what belongs to no class.
    """

    def __init__(self, arch: str, num_classes: int) -> None:
        super().__init__(arch)
        self.num_classes = num_classes
        self.last_layer = Conv2d(self.channels[3], num_classes + 1, 1)
        initialise(self)

    def execute(self, x: Var) -> Var:
        return self.last_layer(self.trunk(x)[3])


def normalise_rows(layer: Any) -> None:
    """Scale each row of ``layer.weight`` to unit length.

    A Var that was computed under ``no_grad`` has no gradient, also when it replaces a parameter.
    The gradient must be switched on again before the forward, or it does not reach the loss; so
    this function does it.
    """
    with jt.no_grad():
        rows = l2_normalise(layer.weight)
    layer.weight.update(rows)
    layer.weight.start_grad()


def _projection_head(inputs: int, hidden: int, outputs: int) -> Any:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
        BatchNorm(outputs, affine=False),
    )


def _pixel_head(inputs: int, hidden: int, outputs: int) -> Any:
    return nn.Sequential(
        Conv2d(inputs, hidden, 1, bias=False),
        BatchNorm(hidden),
        nn.ReLU(),
        Conv2d(hidden, hidden, 1, bias=False),
        BatchNorm(hidden),
        nn.ReLU(),
        Conv2d(hidden, outputs, 1, bias=False),
        BatchNorm(outputs, affine=False),
    )


def _shallow_names(stage: int) -> tuple[str, str]:
    return f"projection_head_pixel{stage}", f"projection_head_shallow{stage}"


def _group_by_size(crops: Sequence[Any]) -> list[list[int]]:
    """Indices of crops of the same size, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for view, crop in enumerate(crops):
        groups.setdefault(tuple(crop.shape), []).append(view)
    return list(groups.values())


def _join(crops: Sequence[Any], group: list[int]) -> Var:
    """The crops of a group as one batch, view by view."""
    return jt.array(np.concatenate([_array(crops[view]) for view in group]))


def _in_view_order(rows: list[Var], groups: list[list[int]]) -> Var:
    """Rows of the groups, (views in it * B, d) each, as (V*B, d) in the order of the crops."""
    joined = jt.concat(rows) if len(rows) > 1 else rows[0]
    views = np.concatenate(groups)
    if (np.diff(views) > 0).all():
        return joined
    batch = joined.shape[0] // len(views)
    return joined[(np.argsort(views)[:, None] * batch + np.arange(batch)).reshape(-1)]


def _array(x: Var | np.ndarray) -> np.ndarray:
    return x.numpy() if isinstance(x, jt.Var) else x


def _attended_mean(feature: Var, attention: Var, threshold: float) -> Var:
    if threshold > 0:
        attention = attention * (attention >= threshold).float32()
    return (feature * attention).mean([2, 3])

"""The networks and losses of PASS in plain PyTorch, as the benchmark's other side.

Key names are the official code's, so that one set of weights fills both sides. Everything is
written the way PyTorch's own documentation suggests: its modules, its optimiser, no custom kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EXPANSION = 4  # of the bottleneck block
_POOL_BINS = (1, 2, 3, 6)
_LARC_TRUST, _LARC_EPSILON = 0.001, 1e-8

Parts = tuple[Tensor, dict[str, Tensor]]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet18)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut (ResNet50)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * _EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * _EXPANSION)
        self.downsample = _shortcut(inputs, width * _EXPANSION, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Trunk with torchvision's keys: (B,3,H,W) -> the maps at strides 4, 8, 16 and 32."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        block, blocks, expansion = {
            "resnet18": (BasicBlock, (2, 2, 2, 2), 1),
            "resnet50": (Bottleneck, (3, 4, 6, 3), _EXPANSION),
        }[arch]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.channels = [width * expansion for width in (64, 128, 256, 512)]
        inputs = 64
        for stage, (count, channels) in enumerate(zip(blocks, self.channels), start=1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(block(inputs, channels // expansion, stride))
                inputs = channels
            setattr(self, f"layer{stage}", nn.Sequential(*layers))

    def trunk(self, x: Tensor) -> list[Tensor]:
        """[c1, c2, c3, c4]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


class PretrainNet(ResNet):
    """Trunk, image head, one head for layer 3, pixel head with predictor, prototypes."""

    def __init__(self, arch: str, hidden: int, width: int, prototypes: int) -> None:
        super().__init__(arch)
        shallow, deep = self.channels[2:]
        self.projection_head = _projection_head(deep, hidden, width)
        self.projection_head_shallow = nn.ModuleDict(
            {"projection_head_shallow3": _projection_head(shallow, hidden, width)}
        )
        self.projection_head_pixel_shallow = nn.ModuleDict(
            {"projection_head_pixel3": _pixel_head(shallow, hidden, shallow)}
        )
        self.projection_head_pixel = _pixel_head(deep, hidden, width)
        self.predictor_head_pixel = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
        )
        self.prototypes = nn.Linear(width, prototypes, bias=False)

    def forward(
        self, large: Tensor, small: Tensor, grids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(embedding, logits, layer 3's logits, z, p) of crops joined view by view."""
        maps = self.trunk(large)
        pooled = [features.mean((2, 3)) for features in (maps[3], self.trunk(small)[3])]
        embedding = F.normalize(self.projection_head(torch.cat(pooled)))
        shallow = self.projection_head_pixel_shallow["projection_head_pixel3"](maps[2])
        shallow = self.projection_head_shallow["projection_head_shallow3"](shallow.mean((2, 3)))
        shallow_logits = F.linear(F.normalize(shallow), self.prototypes.weight.detach())
        z = F.grid_sample(self.projection_head_pixel(maps[3]), grids, align_corners=False)
        return (
            embedding,
            self.prototypes(embedding),
            shallow_logits,
            z,
            self.predictor_head_pixel(z),
        )


class UPerNet(ResNet):
    """Pyramid pooling and feature pyramid on the trunk, without dropout: logits at stride 4."""

    def __init__(self, arch: str, num_classes: int, width: int) -> None:
        super().__init__(arch)
        self.last_layer = UPerHead(self.channels, width, num_classes + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(self.trunk(x))


class UPerHead(nn.Module):
    """Maps [c1..c4] -> logits at the size of c1."""

    def __init__(self, channels: Sequence[int], width: int, outputs: int) -> None:
        super().__init__()
        self.psp_modules = nn.Sequential(
            *(
                nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvBnRelu(channels[-1], width, 1))
                for bins in _POOL_BINS
            )
        )
        self.bottleneck = ConvBnRelu(channels[-1] + len(_POOL_BINS) * width, width, 3)
        self.lateral_convs = nn.Sequential(*(ConvBnRelu(c, width, 1) for c in channels[:-1]))
        self.fpn_convs = nn.Sequential(*(ConvBnRelu(width, width, 3) for _ in channels[:-1]))
        self.fpn_bottleneck = ConvBnRelu(len(channels) * width, width, 3)
        self.conv_seg = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        pooled = [_resize(branch(maps[-1]), maps[-1]) for branch in self.psp_modules]
        levels = [lateral(m) for lateral, m in zip(self.lateral_convs, maps)]
        levels.append(self.bottleneck(torch.cat([maps[-1], *pooled], 1)))
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + _resize(levels[i + 1], levels[i])
        fine = [conv(level) for conv, level in zip(self.fpn_convs, levels)] + [levels[-1]]
        joined = torch.cat([_resize(level, fine[0]) for level in fine], 1)
        return self.conv_seg(self.fpn_bottleneck(joined))


class ConvBnRelu(nn.Module):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def pretrain_loss(
    model: PretrainNet, crops: Sequence[Tensor], grids: Tensor, temperature: float, epsilon: float
) -> Parts:
    """(total, its parts) of views (B,3,S,S), the two large ones first, without a queue."""
    with torch.no_grad():
        model.prototypes.weight.copy_(F.normalize(model.prototypes.weight))
    batch, views = len(crops[0]), len(crops)
    large, small = torch.cat(tuple(crops[:2])), torch.cat(tuple(crops[2:]))
    _, logits, shallow_logits, z, p = model(large, small, grids)
    logits, shallow_logits = logits.split(batch), shallow_logits.split(batch)
    targets = [_sinkhorn(logits[view].detach(), epsilon) for view in range(2)]
    image = sum(
        F.cross_entropy(logits[other] / temperature, targets[view])
        for view in range(2)
        for other in range(views)
        if other != view
    ) / (2 * (views - 1))
    shallow = (
        sum(
            F.cross_entropy(shallow_logits[1 - view] / temperature, targets[view])
            for view in range(2)
        )
        / 2
    )
    pixel = -F.cosine_similarity(p, torch.cat(z.detach().split(batch)[::-1])).mean()
    parts = {"image": image, "shallow3": shallow, "pixel": pixel}
    return (image + shallow) / 2 + pixel, parts


def finetune_loss(model: UPerNet, images: Tensor, labels: Tensor) -> Parts:
    """(cross entropy of the logits resized to the labels (B,h,w), {})."""
    logits = F.interpolate(model(images), labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels), {}


def stepper(
    model: nn.Module, loss: Callable[[], Parts], rate: float, momentum: float, decay: float
) -> Callable[[], dict[str, float]]:
    """A function that trains ``model`` by one step (SGD, gradients scaled by LARC) and returns the
    loss and its parts.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)

    def step() -> dict[str, float]:
        total, parts = loss()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                _scale_gradient(parameter, decay)
        optimizer.step()
        return {name: value.item() for name, value in {"loss": total, **parts}.items()}

    return step


def _scale_gradient(parameter: Tensor, decay: float) -> None:
    size, slope = parameter.norm(), parameter.grad.norm()
    if size != 0 and slope != 0:
        ratio = _LARC_TRUST * size / (slope + decay * size + _LARC_EPSILON)
        parameter.grad.add_(parameter, alpha=decay).mul_(ratio)


def _sinkhorn(logits: Tensor, epsilon: float, iterations: int = 3) -> Tensor:
    """Soft assignments (B, P) with equal totals of all prototypes."""
    weights = torch.exp(logits / epsilon)
    weights /= weights.sum()
    for _ in range(iterations):
        weights /= weights.sum(0, keepdim=True) * weights.shape[1]
        weights /= weights.sum(1, keepdim=True) * weights.shape[0]
    return weights * weights.shape[0]


def _projection_head(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
        nn.BatchNorm1d(outputs, affine=False),
    )


def _pixel_head(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs, affine=False),
    )


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

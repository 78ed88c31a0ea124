"""Stand-ins for the few functions that the official code imports from torchvision and timm.

Those packages would pull a CUDA build of PyTorch, and torchvision's extension has no CPU build on
every machine. Each does what the package's documentation states; where the package is installed,
it is used.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image


def install() -> None:
    """Make ``import segment_anything`` and ``import mobile_sam`` work without the two packages."""
    if _absent("torchvision"):
        _module("torchvision.ops.boxes", batched_nms=batched_nms, box_area=box_area)
        _module("torchvision.transforms.functional", resize=resize, to_pil_image=to_pil_image)
    if _absent("timm"):
        names = {"DropPath": _drop_path(), "to_2tuple": to_2tuple, "trunc_normal_": _trunc_normal()}
        _module("timm.models.layers", **names)
        _module("timm.models.registry", register_model=register_model)


def box_area(boxes: Any) -> Any:
    """Areas (N,) of xyxy boxes (N, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float) -> Any:
    """Non-maximum suppression within each category.

    Args:
        boxes: tensor (N, 4) xyxy. scores: (N,). idxs: (N,), the category of each box.
        iou_threshold: of two boxes of a category whose IoU is larger, the one of lower score goes.

    Returns:
        int64 indices of the kept boxes, best first; of equal scores the earlier box comes first.
    """
    import torch

    corners, values = boxes.detach().numpy(), scores.detach().numpy()
    categories = idxs.detach().numpy()
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    order = np.argsort(-values, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        top_left = np.maximum(corners[best, :2], corners[order, :2])
        bottom_right = np.minimum(corners[best, 2:], corners[order, 2:])
        shared = np.prod(np.clip(bottom_right - top_left, 0, None), axis=1)
        with np.errstate(invalid="ignore"):  # two empty boxes: 0 / 0 suppresses nothing
            iou = shared / (areas[best] + areas[order] - shared)
        order = order[
            ~((iou.astype(np.float64) > iou_threshold) & (categories[order] == categories[best]))
        ]
    return torch.as_tensor(np.array(kept, np.int64))


def to_pil_image(pic: np.ndarray) -> Image.Image:
    """uint8 (H, W, 3) as a Pillow image."""
    return Image.fromarray(pic)


def resize(img: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear (antialiased, as Pillow's is) to (h, w)."""
    return img.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def to_2tuple(x: Any) -> tuple[Any, Any]:
    """(x, x), or a pair as it is."""
    return (x[0], x[1]) if isinstance(x, (tuple, list)) else (x, x)


def register_model(fn: Any) -> Any:
    """timm's registry of models by name is not needed here."""
    return fn


def _drop_path() -> Any:
    import torch

    class DropPath(torch.nn.Module):
        """Stochastic depth: in training a sample's branch is dropped with ``drop_prob``."""

        def __init__(self, drop_prob: float = 0.0) -> None:
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x: Any) -> Any:
            if not self.drop_prob or not self.training:
                return x
            keep = 1 - self.drop_prob
            shape = (x.shape[0],) + (1,) * (x.ndim - 1)
            return x * x.new_empty(shape).bernoulli_(keep) / keep

    return DropPath


def _trunc_normal() -> Any:
    import torch

    return torch.nn.init.trunc_normal_


def _absent(package: str) -> bool:
    return package not in sys.modules and importlib.util.find_spec(package) is None


def _module(name: str, **contents: Any) -> None:
    """Put a module and its parents into ``sys.modules``."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            sys.modules[path] = ModuleType(path)
            sys.modules[path].__path__ = []
        if end > 1:
            setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[path])
    vars(sys.modules[name]).update(contents)

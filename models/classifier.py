"""A classifier of images that says where it saw each class: class activation maps."""

from __future__ import annotations

from typing import Any

from core.nn.layers import Conv2d
from core.runtime import jt
from models.resnet import ResNet

Var = Any

_STD = 0.01  # of the weights that give the logits: all classes start alike


class Classifier(ResNet):
    """A ResNet with a 1x1 convolution on its last maps, whose mean is the logit of a class.

    Args:
        arch: trunk, of ``models.resnet.TRUNKS``.
        num_classes: C.
    """

    def __init__(self, arch: str, num_classes: int) -> None:
        super().__init__(arch)
        self.classifier = Conv2d(self.channels[3], num_classes, 1, bias=False)
        self.classifier.weight = jt.init.gauss(self.classifier.weight.shape, "float32", 0.0, _STD)

    def maps(self, x: Var) -> Var:
        """Class activation maps (B, C, H/32, W/32) of normalised images (B, 3, H, W), float32."""
        return self.classifier(self.trunk(x)[3])

    def execute(self, x: Var) -> Var:
        """Logits (B, C) float32."""
        return self.maps(x).mean((2, 3))

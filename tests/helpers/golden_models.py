"""Fill a network with the golden recipe's weights, and check it against a golden file."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from core.nn.layers import BatchNorm
from core.runtime import jt


def fill(model: Any, recipe: ModuleType, prefix: str = "") -> None:
    """Set every state entry of ``model`` to the recipe's weight for ``prefix`` + its key."""
    for key, parameter in model.named_parameters():
        value = recipe.weight(prefix + key, tuple(parameter.shape))
        parameter.update(jt.array(value))


def set_batch_norms(model: Any, train: bool) -> None:
    """Switch batch norms only: ``Module.eval()`` also takes the gradient from all parameters."""
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            layer.is_train = train


def state(model: Any) -> dict[str, np.ndarray]:
    """Key -> array of the model's state."""
    return {key: parameter.numpy() for key, parameter in model.named_parameters()}

"""Training steps of PASS beside the same networks and losses in plain PyTorch.

Both sides start from the same random weights and see the same batch; every run is one whole step
(forward, losses, gradients, LARC, update), so the weights of both sides walk the same way. Rounding
grows from step to step, as it does between two machines: the first two steps are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import (
    Agreement,
    Arrays,
    Case,
    Inputs,
    Loaded,
    Suite,
    in_torch,
    no_inputs,
    our_side,
)
from benchmarks.inputs import noise, random_weight

_PRETRAIN_BATCH, _LARGE, _SMALL = 8, (2, 224), (6, 96)  # images; (crops of an image, pixels)
_FINETUNE_BATCH, _CROP = 4, 224
_CLASSES = 50
_STEP = 2000  # late enough for the prototypes to learn too
_TOLERANCE = (1e-4, 1e-3)  # of the losses of the first two steps (the warm-up and the first run)
_AIM = 1.0

Values = dict[str, float]


# Batches ----------------------------------------------------------------------------------------


def pretrain_batch() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Crops (B,3,S,S) of normal noise and the lattice points (B,7,7,2) in the first two."""
    sizes = [size for count, size in (_LARGE, _SMALL) for _ in range(count)]
    crops = [noise(view, (_PRETRAIN_BATCH, 3, size, size)) for view, size in enumerate(sizes)]
    points = np.random.default_rng(100).uniform(-1, 1, (2, _PRETRAIN_BATCH, 7, 7, 2))
    return crops, *points.astype(np.float32)


def finetune_batch() -> tuple[np.ndarray, np.ndarray]:
    """Images (B,3,S,S) of normal noise and int64 labels (B,S,S) in large squares."""
    cells = np.random.default_rng(101).integers(0, _CLASSES + 1, (_FINETUNE_BATCH, 7, 7))
    labels = cells.repeat(_CROP // 7, 1).repeat(_CROP // 7, 2)
    return noise(102, (_FINETUNE_BATCH, 3, _CROP, _CROP)), labels


# Ours -------------------------------------------------------------------------------------------


def our_pretraining(inputs: Inputs) -> Loaded:
    """A step of :class:`uss.pretrain.PretrainTask` before the queue takes part."""
    from uss import pretrain
    from uss.presets import preset

    config = preset("luss50", "resnet18")
    model = pretrain.build(config)
    crops, gridq, gridk = pretrain_batch()
    task = pretrain.PretrainTask(model, config)
    return _our_steps(task, (*crops, gridq, gridk), config.pretrain)


def our_finetuning(inputs: Inputs) -> Loaded:
    """A step of :class:`uss.finetune.FinetuneTask`."""
    from pathlib import Path

    from core.runtime import nn
    from uss import finetune
    from uss.presets import preset

    config = preset("luss50", "resnet50")
    model = finetune.network(config)
    model.last_layer.dropout = nn.Identity()  # both sides draw no random numbers
    task = finetune.FinetuneTask(model, config, Path("labels"))
    return _our_steps(task, finetune_batch(), config.finetune)


def _our_steps(task: Any, batch: Any, settings: Any) -> Loaded:
    from core.runtime import jt
    from core.training.loop import train_step

    for key, var in task.model.state_dict().items():
        if ".running_" not in f".{key}":
            var.update(jt.array(random_weight(key, tuple(var.shape))))
            var.start_grad()
    task.model.train()

    return _recorded(lambda: train_step(task, batch, _STEP, settings.base_lr)[0])


# The other side ---------------------------------------------------------------------------------


def torch_pretraining(inputs: Inputs) -> Loaded:
    """The same step in plain PyTorch."""
    import torch

    from benchmarks import torch_pass
    from uss.presets import preset

    config = preset("luss50", "resnet18")
    heads, assignment = config.heads, config.assignment
    model = torch_pass.PretrainNet("resnet18", heads.hidden_mlp, heads.feat_dim, heads.prototypes)
    arrays, gridq, gridk = pretrain_batch()
    crops = [torch.from_numpy(crop) for crop in arrays]
    grids = torch.from_numpy(np.concatenate([gridq, gridk]))

    def loss() -> Any:
        return torch_pass.pretrain_loss(
            model, crops, grids, assignment.temperature, assignment.epsilon
        )

    return _torch_steps(model, loss, config.pretrain)


def torch_finetuning(inputs: Inputs) -> Loaded:
    """The same step in plain PyTorch."""
    import torch

    from benchmarks import torch_pass
    from core.data.crops import resize_nearest
    from uss.presets import preset

    config = preset("luss50", "resnet50")
    settings = config.finetune
    model = torch_pass.UPerNet("resnet50", _CLASSES, settings.head_width)
    arrays, labels = finetune_batch()
    side = round(_CROP * settings.label_scale)
    images = torch.from_numpy(arrays)

    def loss() -> Any:
        small = np.stack([resize_nearest(label, (side, side)) for label in labels])
        return torch_pass.finetune_loss(model, images, torch.from_numpy(small))

    return _torch_steps(model, loss, settings)


def _torch_steps(model: Any, loss: Callable[[], Any], settings: Any) -> Loaded:
    import torch

    from benchmarks import torch_pass

    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random_weight(key, tuple(parameter.shape))))
    step = torch_pass.stepper(
        model.train(), loss, settings.base_lr, settings.momentum, settings.weight_decay
    )
    return _recorded(step)


# The comparison ---------------------------------------------------------------------------------


def _recorded(step: Callable[[], Values]) -> Loaded:
    """A side whose result is the losses of all steps, by name."""
    history: list[Values] = []

    def run() -> None:
        history.append(step())

    def result(_outcome: Any) -> Arrays:
        return {name: np.array([values[name] for values in history]) for name in history[0]}

    return Loaded(run, run, result)


def same_losses(ours: Arrays, torch: Arrays) -> Agreement:
    """Largest relative differences of the loss and its parts, step by step."""
    errors = np.max([np.abs(ours[name] / torch[name] - 1) for name in torch], axis=0)
    text = (
        f"loss {ours['loss'][0]:.4f}, losses within {errors[0]:.1e} at step 1, {errors[1]:.1e} at "
        f"step 2, {errors[-1]:.1e} at step {len(errors)}"
    )
    return Agreement(bool((errors[:2] <= _TOLERANCE).all()), text)


SUITE = Suite(
    module=__name__,
    prepare=no_inputs,
    needs=("torch",),
    cases={
        "pretrain_step": Case(
            f"pretraining step, ResNet18, {_LARGE[0]} x {_LARGE[1]} + {_SMALL[0]} x {_SMALL[1]} px,"
            f" batch {_PRETRAIN_BATCH}",
            {**our_side(our_pretraining), **in_torch("PyTorch", torch_pretraining)},
            same_losses,
            aim=_AIM,
            peak_aim=_AIM,
        ),
        "finetune_step": Case(
            f"fine-tuning step, ResNet50-UPerNet, {_CROP} px, batch {_FINETUNE_BATCH}",
            {**our_side(our_finetuning), **in_torch("PyTorch", torch_finetuning)},
            same_losses,
            aim=_AIM,
            peak_aim=_AIM,
        ),
    },
)

"""Takes a tiny network through the three training stages; started by tests, alone or by mpirun.

Arguments: data folder, run folder, and optionally a run folder whose pretrained network is to be
trained on instead of the own. Each process leaves ``<stage>.<rank>.npz`` in the run folder:
weights, those before the first step as ``start/<name>``, and the velocities after it, which are its
gradients with LARC, as ``first/<name>``.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from core import distributed
from core.checkpoints import files as checkpoint
from core.errors import main_guard
from core.training import loop
from core.training.optim import LarcSGD
from core.training.options import TrainOptions
from models import resnet
from uss import finetune, pixel_attention, pretrain
from uss.config import Config, Heads
from uss.paths import RunFolder
from uss.presets import preset

EPOCHS = 4


def config() -> Config:
    """Every part of the objective: both crop sizes, shallow and pixel loss, queue, prototypes."""
    base = preset("demo", "resnet18")
    common = {"epochs": EPOCHS, "batch_size": 4}
    return replace(
        base,
        num_classes=2,
        workers=0,
        heads=Heads(hidden_mlp=16, feat_dim=8, prototypes=6),
        pretrain=replace(
            base.pretrain,
            **common,
            base_lr=1.0,  # large steps blow rounding up
            crop_sizes=(64, 32),
            crop_counts=(2, 1),
            queue_length=8,
            queue_start_epoch=1,
            freeze_prototypes_steps=1,
        ),
        pixel_attention=replace(
            base.pixel_attention, **common, crop_size=64, queue_length=8, threshold=0.0
        ),
        finetune=replace(base.finetune, **common, crop_size=64, head="plain"),
    )


@main_guard
def main() -> int:
    """Run the three stages."""
    data, run = Path(sys.argv[1]), Path(sys.argv[2])
    resnet.TRUNKS["resnet18"] = resnet.Trunk(resnet.BasicBlock, (1, 1, 1, 1), (8, 8, 16, 16))
    options = TrainOptions(log_steps=1)
    fit, step = loop.fit, LarcSGD.step
    first: dict[str, np.ndarray] = {}

    def noting_step(optimizer, *arguments) -> None:
        step(optimizer, *arguments)
        if not first:
            first.update({f"first/{key}": value for key, value in optimizer.state().items()})

    def noting_fit(plan, task, *arguments) -> None:
        first.clear()
        start = checkpoint.model_state(task.model)
        fit(plan, task, *arguments)
        name = f"{plan.stage}.{distributed.rank()}.npz"
        noted = {f"start/{key}": value for key, value in start.items()}
        np.savez(run / name, **checkpoint.model_state(task.model), **noted, **first)

    loop.fit, LarcSGD.step = noting_fit, noting_step
    pretrain.run(config(), data, RunFolder(run), options)
    distributed.barrier()
    if sys.argv[3:] and distributed.is_main():
        own, other = (RunFolder(root).pretrain("resnet18") for root in (run, Path(sys.argv[3])))
        shutil.copy(other / checkpoint.LATEST, own / checkpoint.LATEST)
    distributed.barrier()
    for stage in (pixel_attention, finetune):
        stage.run(config(), data, RunFolder(run), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
